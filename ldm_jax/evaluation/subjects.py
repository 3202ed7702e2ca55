"""The config of a trained run, read without its weights."""

import json

from ml_collections import ConfigDict

from ldm_jax.checkpoint import Folder, checkpoint_folder, read_meta
from ldm_jax.config import from_json
from ldm_jax.errors import ConfigError


def config_of(workdir: Folder, step: int | None = None) -> ConfigDict:
    """Reads the config of a run.

    Args:
      workdir: Folder of the run.
      step: Step of the checkpoint; the newest by default.

    Returns:
      The config that the checkpoint records.

    Raises:
      CheckpointError: If there is no checkpoint, or it cannot be read.
    """
    return from_json(json.dumps(read_meta(checkpoint_folder(workdir, step))["config"]))


def require_second_stage(workdir: Folder, step: int | None = None) -> ConfigDict:
    """Reads the config of a run, which must be a second stage.

    Args:
      workdir: Folder of the run.
      step: Step of the checkpoint; the newest by default.

    Returns:
      The config.

    Raises:
      ConfigError: If it is not a second stage.
      CheckpointError: If there is no checkpoint, or it cannot be read.
    """
    config = config_of(workdir, step)
    if config.stage != "diffusion":
        raise ConfigError(
            f"--workdir={workdir} is no second stage (its stage is {config.stage}): "
            "name the run of a model that draws samples"
        )
    return config
