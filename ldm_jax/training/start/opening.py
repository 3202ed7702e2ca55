"""Opens a run: makes everything that its loop needs from a config and a workdir."""

import contextlib
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ldm_jax import peers, sharding
from ldm_jax.batches import Data
from ldm_jax.build import with_image_channels
from ldm_jax.checkpoint import Checkpoints, Folder, write_config
from ldm_jax.config import build, check_values, choose, to_dict, upgrade_config
from ldm_jax.console import Console
from ldm_jax.data.open_source import check_sources, held_out_notes
from ldm_jax.lock import hold
from ldm_jax.seeds import make_key
from ldm_jax.training import autoencoder, classifier, diffusion
from ldm_jax.training.freeze import check_freeze, freeze_paths
from ldm_jax.training.start.idle_keys import idle_notes
from ldm_jax.training.start.opened import Run
from ldm_jax.training.start.same_run import check_config, check_data, check_same_data
from ldm_jax.training.writer import Writer


def read_config(config: ConfigDict) -> tuple[ConfigDict, list[str]]:
    """Upgrades and checks a config, before anything is opened.

    Args:
      config: ConfigDict of any stage.

    Returns:
      (config, notes): sentences on keys that were renamed or have no effect, and on
      data that are both held out and trained on.

    Raises:
      ConfigError: If it is invalid.
    """
    config, notes = upgrade_config(config)
    config = with_image_channels(check_values(config))
    choose(CHECKS, config.stage, "stage")(config)
    check_sources(config.data)
    return config, notes + idle_notes(config) + held_out_notes(config.data)


def open_run(
    config: ConfigDict,
    workdir: Folder,
    stack: contextlib.ExitStack,
    notes: list[str],
    allow_change: bool,
    take_workdir: bool,
) -> Run:
    """Opens a run; `stack` closes what must be closed.

    Args:
      config: ConfigDict from `read_config`.
      workdir: Folder of the run.
      stack: Closes what is opened, in reverse order.
      notes: Sentences on the config, to be printed.
      allow_change: Resume although config or data differ from the checkpoint's.
      take_workdir: Take it over from a run on another host, see `lock.hold`.

    Returns:
      Run.

    Raises:
      ConfigError: If config or data are invalid.
      CheckpointError: If a checkpoint cannot be read, or is of another config.
      WorkdirInUse: If another run uses the workdir.
    """
    train, main = config.train, jax.process_index() == 0

    # The devices: one mesh, over which every batch is split evenly.
    mesh = build(sharding.make_mesh, train.mesh, "train.mesh", devices=None)
    sharding.check_batch_size(train.batch_size, mesh, parts=train.accumulate_steps)

    # Where to resume: the newest checkpoint, which must be of this config. Process 0
    # locks the workdir, and finds the checkpoint for all processes.
    if main:
        stack.enter_context(hold(workdir, take_workdir))
    # That may take a minute, which Orbax, where processes meet, does not give.
    peers.gather("held")
    checkpoints = Checkpoints(workdir, train.keep_last, train.keep_every)
    # Entered first, so that it is active until the last save is finished.
    stack.enter_context(peers.saving(checkpoints.wait))
    stack.enter_context(contextlib.closing(checkpoints))
    start = int(peers.gather(str(checkpoints.latest_step or 0))[0])
    meta = checkpoints.meta(start) if start else {}
    if start:
        notes = notes + check_config(config, meta, allow_change)

    # The data, the stage as pure functions, and the `meta` of checkpoints.
    data, trained_on, changes = _open_data(config, mesh, meta, allow_change)
    stage, record = STAGES[config.stage](config, mesh, data, meta, workdir)
    begun = {"init_from": meta["init_from"]} if "init_from" in meta else {}
    meta = {"config": to_dict(config), "data": trained_on} | record | begun

    # The writer and the console.
    if main:
        write_config(workdir, config)
    writer = Writer(workdir, to_dict(config), start, main, train.wandb)
    stack.enter_context(contextlib.closing(writer))
    console = Console(train.num_steps, start, main)
    stack.enter_context(contextlib.closing(console))
    for note in notes + changes:
        console.line(note)

    # The state: its shapes and shardings; the frozen weights, put on the devices.
    abstract = jax.eval_shape(stage.init, make_key(config.seed))
    check_freeze(freeze_paths(config), abstract.params)
    shardings = sharding.tree_shardings(abstract, mesh, train.sharding_overrides)
    split = sharding.tree_shardings(stage.frozen, mesh)
    return Run(
        config=config,
        mesh=mesh,
        checkpoints=checkpoints,
        start=start,
        meta=meta,
        data=data,
        stage=stage,
        writer=writer,
        console=console,
        abstract=abstract,
        shardings=shardings,
        frozen=sharding.put_tree(stage.frozen, split),
    )


def _open_data(
    config: ConfigDict, mesh: Mesh, meta: Mapping[str, Any], allow_change: bool
) -> tuple[Data, dict[str, Any], list[str]]:
    """Opens the data; returns them, their record, and notes on accepted changes."""
    data = Data(config.data, config.seed, config.train.batch_size, mesh)
    record = data.record()
    check_same_data(record)
    return data, record, check_data(config, record, meta, allow_change) if meta else []


# `stage` of a config -> function that makes the Stage, see `training.step`.
STAGES = {
    "autoencoder": autoencoder.make_stage,
    "diffusion": diffusion.make_stage,
    "classifier": classifier.make_stage,
}
# `stage` of a config -> function that checks the config before anything is opened.
CHECKS = {
    "autoencoder": autoencoder.check,
    "diffusion": diffusion.check,
    "classifier": classifier.check,
}
