"""Trained first stages."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ldm_jax import checkpoint, peers
from ldm_jax.build import make_first_stage
from ldm_jax.checkpoint import Folder, Step, absolute, tree_checksum
from ldm_jax.config import Section
from ldm_jax.errors import CheckpointError, ConfigError
from ldm_jax.images import Pixels, pixels_of
from ldm_jax.models.first_stages import row_of
from ldm_jax.models.identity import identity_of
from ldm_jax.sharding import named_leaves


class FirstStage(NamedTuple):
    """A trained first stage.

    Attributes:
      module: The autoencoder.
      params: Its weights, NumPy.
      config: The config it was trained with; None for the identity.
      record: Dict with the origin of the weights, and checksums of the weights that
        latents depend on ("checksum") and of those only used in decoding
        ("decoder_checksum").
    """

    module: Any
    params: Any
    config: Any
    record: dict

    @property
    def pixels(self) -> Pixels:
        """Format of the images that it was trained on."""
        section = {} if self.config is None else self.config.data
        return pixels_of(section, self.module.image_channels)

    def check_pixels(self, section: Section) -> None:
        """Checks that images have its channels and range of values.

        Args:
          section: Config section `data` of the images.

        Raises:
          ConfigError: If they differ.
        """
        ours, theirs = pixels_of(section), self.pixels
        if ours.count != theirs.count or (ours.kind != theirs.kind and self.config):
            raise ConfigError(
                f"data.channels={ours.channels or 'rgb'}, but the first stage "
                f"{self.record['workdir']} is of images with data.channels="
                f"{theirs.channels or 'rgb'}: set data.channels to that, or train "
                "another first stage"
            )
        if self.config and ours.value_range != theirs.value_range:
            raise ConfigError(
                f"data.value_range={ours.value_range}, and {theirs.value_range} where "
                f"the first stage {self.record['workdir']} was trained: set it to that"
            )


def load_first_stage(
    workdir: Folder,
    step: Step = None,
    average: bool = True,
    key: str = "first_stage.workdir",
    image_channels: int = 3,
) -> FirstStage:
    """Loads a trained first stage.

    Args:
      workdir: Its workdir, or "identity" for none: diffusion on pixels.
      step: Checkpoint to load; the newest by default.
      average: Whether to load the moving average of the weights, if one was kept.
      key: Flag or config key of the workdir, for messages.
      image_channels: Channels of the images, for "identity".

    Returns:
      A FirstStage.

    Raises:
      ConfigError: If the workdir is not given or is not that of an autoencoder.
      CheckpointError: If there is no checkpoint in it, or it cannot be read.
    """
    if workdir == "identity":
        fields = {"kind": "identity", "image_channels": image_channels}
        record = {"workdir": "identity", "step": None}
        if image_channels != 3:
            record["image_channels"] = image_channels
        return FirstStage(make_first_stage(fields), {}, None, record)
    if not workdir:
        raise ConfigError(
            f"{key} is not set: train a first stage with train.py "
            f"(configs/*autoencoder*.py) and give --config.{key}=ITS_WORKDIR"
        )
    config, params, meta = checkpoint.load_weights(workdir, step, average)
    if config.stage != "autoencoder":
        raise ConfigError(
            f"{key}={workdir} holds a {config.stage} run; give the workdir of an "
            "autoencoder"
        )
    module, params = make_first_stage(config.first_stage), params["autoencoder"]
    encoder, decoder = _split(module, params)
    record = record_of(workdir, meta) | {
        "image_size": config.data.image_size,
        "checksum": tree_checksum(encoder),
        "decoder_checksum": tree_checksum(decoder),
    }
    return FirstStage(module, params, config, record)


def record_of(workdir: Folder, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Makes a record of the origin of weights, to be saved with results.

    Args:
      workdir: Workdir of the run.
      meta: The metadata that `checkpoint.load_weights` returned with them.

    Returns:
      JSON-like dict of "workdir", "step" and "weights", the item of the checkpoint.
    """
    return {
        "workdir": str(absolute(workdir)),
        "step": meta["step"],
        "weights": meta["item"],
    }


def check_same_everywhere(first: FirstStage) -> None:
    """Checks that all processes of a job have the same first stage; all must call it.

    Args:
      first: FirstStage of this process.

    Raises:
      CheckpointError: If its weights differ between processes.
    """
    names = "step", "checksum", "decoder_checksum"
    found = peers.gather(", ".join(f"{n} {first.record.get(n)}" for n in names))
    if len(set(found)) > 1:
        places = "; ".join(f"process {i}: {text}" for i, text in enumerate(found))
        raise CheckpointError(
            f"the first stage {first.record['workdir']} is not the same on all hosts "
            f"({places}): give its step, or copy one to all of them"
        )


def check_same_latents(first: FirstStage, second: FirstStage) -> None:
    """Checks that two first stages give exactly the same latents.

    Args:
      first: FirstStage that a second stage was trained on.
      second: FirstStage whose decoder is to be used instead.

    Raises:
      ConfigError: If they differ in anything but the decoder.
    """
    one, other = (
        named_leaves(_split(stage.module, stage.params)[0]) | identity_of(stage.module)
        for stage in (first, second)
    )
    places = [stage.record["workdir"] for stage in (first, second)]
    for name in sorted(one.keys() | other.keys()):
        if not np.array_equal(one.get(name), other.get(name)):
            raise ConfigError(
                f"the decoder in {places[1]} is of other latents than {places[0]}: "
                f"{name} differs; train it with train.init_from={places[0]} and the "
                "variant `decoder` of its config"
            )


def _split(module, params):
    """Splits parameters: those that latents depend on, and those only for decoding."""
    parts = row_of(module).decoder_parts
    decoder = {name: tree for name, tree in params.items() if name in parts}
    return {k: v for k, v in params.items() if k not in parts}, decoder
