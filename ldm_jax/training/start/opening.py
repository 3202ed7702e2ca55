"""Opens a run: from a config and a workdir to all that its loop needs."""

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
    """Brings a config up to date and checks it, before anything is opened.

    Args:
      config: ConfigDict of any stage.

    Returns:
      (config, notes): sentences on keys that were renamed or change nothing, and on
      what is held out but trained on.

    Raises:
      ConfigError: If it cannot work.
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
    """Opens what a run needs; what must be closed, the stack closes.

    Args:
      config: ConfigDict, as `read_config` gives it.
      workdir: Folder of the run.
      stack: Closes what is opened, the last first.
      notes: Sentences on the config, to be printed.
      allow_change: Go on although the config or the data differ from the checkpoint's.
      take_workdir: Take it from a run on another host, see `lock.hold`.

    Returns:
      Run.

    Raises:
      ConfigError: If config or data cannot work.
      CheckpointError: If a checkpoint cannot be read, or is of another config.
      WorkdirInUse: If another run works in the workdir.
    """
    train, main = config.train, jax.process_index() == 0

    # The devices: one mesh, over which every batch is split evenly.
    mesh = build(sharding.make_mesh, train.mesh, "train.mesh", devices=None)
    sharding.check_batch_size(train.batch_size, mesh, parts=train.accumulate_steps)

    # Where the run stands: its newest checkpoint, which must be of this config.
    # Process 0 keeps other runs away from it, and finds that for all.
    if main:
        stack.enter_context(hold(workdir, take_workdir))
    checkpoints = Checkpoints(workdir, train.keep_last, train.keep_every)
    # Entered first, it holds until the last save has been closed.
    stack.enter_context(peers.saving(checkpoints.wait))
    stack.enter_context(contextlib.closing(checkpoints))
    start = int(peers.gather(str(checkpoints.latest_step or 0))[0])
    meta = checkpoints.meta(start) if start else {}
    if start:
        notes = notes + check_config(config, meta, allow_change)

    # The data, and the stage as pure functions; what checkpoints say beside arrays.
    data, trained_on, changes = _open_data(config, mesh, meta, allow_change)
    stage, record = STAGES[config.stage](config, mesh, data, meta, workdir)
    begun = {"init_from": meta["init_from"]} if "init_from" in meta else {}
    meta = {"config": to_dict(config), "data": trained_on} | record | begun

    # Where numbers and lines go.
    if main:
        write_config(workdir, config)
    writer = Writer(workdir, to_dict(config), start, main, train.wandb)
    stack.enter_context(contextlib.closing(writer))
    console = Console(train.num_steps, start, main)
    stack.enter_context(contextlib.closing(console))
    for note in notes + changes:
        console.line(note)

    # The state: its shapes and how it is split; what is frozen, where it belongs.
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
    """The data, their record, and notes on how they differ from the checkpoint's."""
    data = Data(config.data, config.seed, config.train.batch_size, mesh)
    record = data.record()
    check_same_data(record)
    return data, record, check_data(config, record, meta, allow_change) if meta else []


# What `stage` in a config says: functions that make a Stage, see `training.step`.
STAGES = {
    "autoencoder": autoencoder.make_stage,
    "diffusion": diffusion.make_stage,
    "classifier": classifier.make_stage,
}
# And what checks a config before anything is opened.
CHECKS = {
    "autoencoder": autoencoder.check,
    "diffusion": diffusion.check,
    "classifier": classifier.check,
}
