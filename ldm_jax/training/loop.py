"""The one training loop, of any stage: read `run` from top to bottom.

A step's randomness and data follow from (seed, step) alone, so the same command goes on
where a run was cut, bit for bit on the same devices.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ldm_jax import peers, sharding
from ldm_jax.batches import Data
from ldm_jax.build import with_image_channels
from ldm_jax.checkpoint import Checkpoints, write_config
from ldm_jax.config import build, check_values, choose, to_dict, upgrade_config
from ldm_jax.console import Console
from ldm_jax.data.open_source import check_sources
from ldm_jax.errors import Stopped, UserError
from ldm_jax.lock import hold
from ldm_jax.seeds import make_key
from ldm_jax.training import autoencoder, classifier, diffusion
from ldm_jax.training.compiled import CompiledStep, jit_step
from ldm_jax.training.freeze import check_freeze, freeze_paths
from ldm_jax.training.held_out import HeldOut, due
from ldm_jax.training.preemption import Preemption
from ldm_jax.training.start.first_state import Run, first_state
from ldm_jax.training.start.same_run import check_config, check_data, check_same_data
from ldm_jax.training.writer import (
    Writer,
    check_finite,
    format_metrics,
    plateau_warning,
)


def run(
    config: ConfigDict,
    workdir: str | os.PathLike,
    allow_config_change: bool = False,
    take_workdir: bool = False,
) -> dict[str, float]:
    """Trains one stage from its config until `train.num_steps`.

    Args:
      config: ConfigDict, see `configs/common.py` for its keys.
      workdir: Folder of the run; it goes on from the newest checkpoint in it.
      allow_config_change: Go on although the config differs from the checkpoint's.
      take_workdir: Take it from a run on another host, see `lock.hold`.

    Returns:
      Dict of the last metrics that were logged.

    Raises:
      ConfigError: If the config cannot work.
      CheckpointError: If a checkpoint exists but is unreadable or of another config.
      WorkdirInUse: If another run works in the workdir.
      TrainingDiverged: If a loss or a gradient is no longer finite.
      Stopped: If the run was asked to stop, after it has saved.
    """
    config, notes = upgrade_config(config)
    config = with_image_channels(check_values(config))
    choose(CHECKS, config.stage, "stage")(config)
    check_sources(config.data)
    train, main = config.train, jax.process_index() == 0
    # What is opened below is closed in the end, the last first: until all is saved, a
    # signal ends nothing.
    with contextlib.ExitStack() as stack:
        preemption = stack.enter_context(contextlib.closing(Preemption()))

        # The devices: one mesh, over which every batch is split evenly.
        mesh = build(sharding.make_mesh, train.mesh, "train.mesh", devices=None)
        micro = train.accumulate_steps
        sharding.check_batch_size(train.batch_size, mesh, parts=micro)

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
            notes += check_config(config, meta, allow_config_change)

        # The data, and the stage as pure functions.
        data = Data(config.data, config.seed, train.batch_size, mesh)
        trained_on = data.record()
        check_same_data(trained_on)
        if start:
            notes += check_data(config, trained_on, meta, allow_config_change)
        make_stage = STAGES[config.stage]
        stage, record = make_stage(config, mesh, data, meta, workdir)

        # What every checkpoint says beside its arrays, and where numbers and lines go.
        begun = {"init_from": meta["init_from"]} if "init_from" in meta else {}
        meta = {"config": to_dict(config), "data": trained_on} | record | begun
        if main:
            write_config(workdir, config)
        writer = Writer(workdir, to_dict(config), start, main, train.wandb)
        stack.enter_context(contextlib.closing(writer))
        console = Console(train.num_steps, start, main)
        stack.enter_context(contextlib.closing(console))
        for note in notes:
            console.line(note)

        # The state: its shapes, how it is split, then its arrays, where they belong.
        abstract = jax.eval_shape(stage.init, make_key(config.seed))
        check_freeze(freeze_paths(config), abstract.params)
        shardings = sharding.tree_shardings(abstract, mesh, train.sharding_overrides)
        split = sharding.tree_shardings(stage.frozen, mesh)
        frozen = sharding.put_tree(stage.frozen, split)
        this = Run(config, mesh, data, stage, shardings, checkpoints, meta, console)
        state = first_state(this, abstract, start)

        # What was due where the run was cut, or nothing at all if it is at its end.
        held_out = HeldOut(this, frozen, writer, stopping=preemption.asked)
        made = held_out.begin(start, state)
        if start >= train.num_steps:
            nothing = "" if made else ", nothing to do"
            console.line(f"step {start} of {train.num_steps}: already trained{nothing}")
            return {}

        # The step, compiled once for each shape of a batch.
        batches = data.train_batches(start)
        stack.enter_context(contextlib.closing(batches))
        batch = next(batches)
        step = jit_step(stage.train_step, shardings, mesh)
        step = CompiledStep(step, train.batch_size, mesh.size, console)
        step.prepare(state, frozen, batch)
        watch = step.watch

        # From here on there is something to save when a signal comes.
        preemption.listen()
        window, last, fault = [], {}, None
        for done in range(start + 1, train.num_steps + 1):
            # One step. The device computes while the next batch is fetched.
            state, metrics = step(state, frozen, batch)
            window.append(metrics)
            console.advance()
            peers.progress(done)
            final, stop = done == train.num_steps, preemption.requested(done)
            if not (final or stop):
                with watch.waiting():
                    batch, fault = _next(batches)
                stop = fault is not None

            # The log: means since the last line, and how fast that was.
            if final or done % train.log_every == 0:
                window = _check(done, window, checkpoints)
                last, window = _means(window) | watch.lap(len(window)), []
                last |= data.counts(done)
                writer.scalars(done, last)
                console.line(format_metrics(done, train.num_steps, last))
                warning = plateau_warning(
                    done, last, train.warmup_steps, last["learning_rate"]
                )
                if warning:
                    console.line(warning)

            # What is due: a checkpoint, and what is made with held-out images. What is
            # saved must be finite. What is still being computed is not of the pause.
            work = [] if stop else held_out.due(done)
            save = final or stop or due(done, train.checkpoint_every)
            save = save or held_out.needs_saved(work)
            if save or work:
                jax.block_until_ready(state)
                with watch.paused():
                    if save:
                        window = _check(done, window, checkpoints)
                        writer.flush()
                        checkpoints.save(done, state, meta)
                    held_out.make(work, done, state)
                    writer.flush()
                    if held_out.cut and not save:
                        # What is left out is made where the run goes on: here.
                        window = _check(done, window, checkpoints)
                        writer.flush()
                        checkpoints.save(done, state, meta)

            # The end, if the machine is wanted back or no more data comes.
            if stop or held_out.cut:
                break
    if fault is not None:
        kept = f"step {done} is saved, and the same command goes on from it"
        raise type(fault)(f"{fault}; {kept}") from fault
    if stop or held_out.cut:
        raise Stopped(f"step {done}: asked to stop; saved, leaving", preemption.signal)
    return last


def _next(batches: Iterator) -> tuple[Any, UserError | None]:
    """The next batch, or a fault of the data to end with once this step is saved."""
    try:
        return next(batches), None
    except UserError as fault:
        # A checkpoint takes all processes, and the others have the next batch.
        if jax.process_count() > 1:
            raise
        return None, fault


def _check(done: int, window: list, checkpoints: Checkpoints) -> list:
    """Fetches the metrics of the last steps; raises where one is not finite."""
    window = jax.device_get(window)

    def saved():
        checkpoints.wait()
        return checkpoints.folders

    check_finite(done - len(window) + 1, window, saved)
    return window


def _means(window: list) -> dict[str, float]:
    """Means of the metrics; a learning rate is not averaged, but what it is now."""
    means = {name: float(np.mean([m[name] for m in window])) for name in window[-1]}
    return means | {"learning_rate": float(window[-1]["learning_rate"])}


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
