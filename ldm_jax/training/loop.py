"""The training loop of all stages: read `run`, then `_train`, from top to bottom.

Randomness and data of a step depend only on (seed, step), so the same command resumes
an interrupted run, bit for bit on the same devices.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from ldm_jax import peers
from ldm_jax.checkpoint import TrainState
from ldm_jax.errors import Stopped, UserError
from ldm_jax.training.compiled import CompiledStep, jit_step
from ldm_jax.training.held_out import HeldOut, due
from ldm_jax.training.preemption import Preemption
from ldm_jax.training.start.first_state import first_state
from ldm_jax.training.start.opened import Run
from ldm_jax.training.start.opening import open_run, read_config
from ldm_jax.training.step_log import StepLog


def run(
    config: ConfigDict,
    workdir: str | os.PathLike,
    allow_config_change: bool = False,
    take_workdir: bool = False,
) -> dict[str, float]:
    """Trains one stage from its config until `train.num_steps`.

    Args:
      config: ConfigDict, see `configs/common.py` for its keys.
      workdir: Folder of the run, which resumes from the newest checkpoint in it.
      allow_config_change: Resume although the config differs from the checkpoint's.
      take_workdir: Take it over from a run on another host, see `lock.hold`.

    Returns:
      Dict of the last metrics that were logged.

    Raises:
      ConfigError: If the config is invalid.
      CheckpointError: If a checkpoint exists but is unreadable or of another config.
      WorkdirInUse: If another run uses the workdir.
      TrainingDiverged: If a loss or gradient is no longer finite.
      Stopped: If the run was asked to stop, after it has saved.
    """
    config, notes = read_config(config)
    # What is opened below is closed at the end in reverse order, so that signals are
    # caught until everything is saved.
    with contextlib.ExitStack() as stack:
        preemption = stack.enter_context(contextlib.closing(Preemption()))
        opened = open_run(
            config, workdir, stack, notes, allow_config_change, take_workdir
        )
        end = _train(opened, preemption, stack)
    if end.fault is not None:
        kept = f"step {end.step} is saved, and the same command continues from it"
        raise type(end.fault)(f"{end.fault}; {kept}") from end.fault
    if end.stopped:
        text = f"step {end.step}: asked to stop; saved, leaving"
        raise Stopped(text, preemption.signal)
    return end.metrics


class _End(NamedTuple):
    """How training ended: at the last step, or earlier and why.

    Attributes:
      step: Number of steps done.
      metrics: The metrics that were logged last.
      fault: Error of the data, if there was no next batch, or None.
      stopped: Whether the run was asked to stop.
    """

    step: int
    metrics: Mapping[str, float]
    fault: UserError | None = None
    stopped: bool = False


def _finished(start, num_steps, made):
    """The message of a run without steps left; `made`: whether something was due."""
    nothing = "" if made else ", nothing to do"
    if start == num_steps:
        return f"step {start} of {num_steps}: already trained{nothing}"
    return (
        f"step {start}: this workdir has gone further than train.num_steps={num_steps}"
        f"{nothing}; to continue, raise train.num_steps above {start}"
    )


def _train(run: Run, preemption: Preemption, stack: contextlib.ExitStack) -> _End:
    """Runs the remaining steps."""
    train, start, console = run.config.train, run.start, run.console
    state = first_state(run)

    # What was due when the run was interrupted; if no steps are left, that is all.
    held_out = HeldOut(run, preemption.asked)
    made = held_out.begin(start, state)
    if start >= train.num_steps:
        console.line(_finished(start, train.num_steps, bool(made)))
        return _End(start, {})

    # The step, compiled once for each batch shape.
    batches = stack.enter_context(contextlib.closing(run.data.train_batches(start)))
    batch = next(batches)
    step = jit_step(run.stage.train_step, run.shardings, run.mesh)
    step = CompiledStep(step, train.batch_size, run.mesh.size, console)
    step.prepare(state, run.frozen, batch)
    watch, log, fault = step.watch, StepLog(run, step.watch), None

    # From here on a signal must save first.
    preemption.listen()
    for done in range(start + 1, train.num_steps + 1):
        # One step. The device computes while the next batch is fetched.
        state, metrics = step(state, run.frozen, batch)
        log.add(metrics)
        console.advance()
        peers.progress(done)
        final, stop = done == train.num_steps, preemption.requested(done)
        if not (final or stop):
            with watch.waiting():
                batch, fault = _next(batches)
            stop = fault is not None

        # The log: means since the last line, and the speed.
        if final or done % train.log_every == 0:
            log.write(done)

        # What is due: a checkpoint, and what is made with held-out images. Running
        # computations must not count as part of the pause.
        work = [] if stop else held_out.due(done)
        save = final or stop or due(done, train.checkpoint_every)
        save = save or held_out.needs_saved(work)
        if save or work:
            jax.block_until_ready(state)
            with watch.paused():
                if save:
                    _save(run, log, done, state)
                held_out.make(work, done, state)
                run.writer.flush()
                if held_out.cut and not save:
                    # What is left out is made when the run resumes, so save this step.
                    _save(run, log, done, state)

        # The end, if the run is asked to stop or there are no more data.
        if stop or held_out.cut:
            break
    return _End(done, log.last, fault, stop or held_out.cut)


def _next(batches: Iterator) -> tuple[Any, UserError | None]:
    """The next batch, or an error of the data, to raise once this step is saved."""
    try:
        return next(batches), None
    except UserError as fault:
        # A checkpoint needs all processes, and the others continue with the next batch.
        if jax.process_count() > 1:
            raise
        return None, fault


def _save(run: Run, log: StepLog, done: int, state: TrainState) -> None:
    """Checks that metrics are finite, flushes the log and saves a checkpoint."""
    log.check(done)
    run.writer.flush()
    run.checkpoints.save(done, state, run.meta)
