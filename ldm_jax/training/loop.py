"""The one training loop: restore, data, steps, logging, evaluation, checkpoints.

It runs any `Stage`.  A step's randomness and data follow from (seed, step) alone, so
the same command goes on where a run was cut, bit for bit on the same devices.
"""

import dataclasses
import time
from typing import Any

import jax
import numpy as np

from ldm_jax import sharding
from ldm_jax.batches import Data
from ldm_jax.checkpoint import Checkpoints, write_config
from ldm_jax.config import choose, to_dict, upgrade_config
from ldm_jax.console import Console
from ldm_jax.training import autoencoder, classifier, diffusion
from ldm_jax.training.diagnosis import check_finite, plateau_warning
from ldm_jax.training.freeze import check_freeze, freeze_paths
from ldm_jax.training.held_out import evaluate, preview, show
from ldm_jax.training.preemption import Preemption
from ldm_jax.training.start import check_config, first_state
from ldm_jax.training.step import Stage
from ldm_jax.training.throughput import Stopwatch, count_flops
from ldm_jax.training.writer import Writer, format_metrics

STAGES = {
    "autoencoder": autoencoder.make_stage,
    "diffusion": diffusion.make_stage,
    "classifier": classifier.make_stage,
}


@dataclasses.dataclass
class Run:
    """What the functions below share: one run's config, devices and files."""

    config: Any
    mesh: Any
    data: Data
    stage: Stage
    frozen: Any
    shardings: Any
    checkpoints: Checkpoints
    meta: dict
    writer: Writer
    console: Console
    evaluate: Any = None
    preview: Any = None


def run(config, workdir, allow_config_change=False):
    """Trains one stage from its config until `train.num_steps`.

    Args:
      config: ConfigDict, see `configs/common.py` for its keys.
      workdir: Folder of the run; it goes on from the newest checkpoint in it.
      allow_config_change: Go on although the config differs from the checkpoint's.

    Returns:
      Dict of the last metrics that were logged.

    Raises:
      ConfigError: If the config cannot work.
      CheckpointError: If a checkpoint exists but is unreadable or of another config.
      TrainingDiverged: If a loss or a gradient is no longer finite.
    """
    config, notes = upgrade_config(config)
    train = config.train
    make_stage = choose(STAGES, config.stage, "stage")
    mesh = sharding.make_mesh(**train.mesh)
    sharding.check_batch_size(train.batch_size, mesh, parts=train.accumulate_steps)
    main = jax.process_index() == 0
    checkpoints = Checkpoints(workdir, train.keep_last, train.keep_every)
    try:
        start = checkpoints.latest_step or 0
        meta = checkpoints.meta(start) if start else {}
        if start:
            notes += check_config(config, meta, allow_config_change)
        data = Data(config.data, config.seed, train.batch_size, mesh)
        stage, found = make_stage(config, mesh, data, meta)
        begun = {"init_from": meta["init_from"]} if "init_from" in meta else {}
        meta = {"config": to_dict(config)} | found | begun
        if main:
            write_config(workdir, config)
        writer = Writer(workdir, to_dict(config), start, main, train.wandb)
        console = Console(train.num_steps, start, main)
        for note in notes:
            console.line(note)
        abstract = jax.eval_shape(stage.init, jax.random.key(config.seed))
        check_freeze(freeze_paths(config), abstract.params)
        this = Run(
            config=config,
            mesh=mesh,
            data=data,
            stage=stage,
            frozen=sharding.put_tree(
                stage.frozen, sharding.tree_shardings(stage.frozen, mesh)
            ),
            shardings=sharding.tree_shardings(abstract, mesh, train.sharding_overrides),
            checkpoints=checkpoints,
            meta=meta,
            writer=writer,
            console=console,
        )
        try:
            state = first_state(this, abstract, start)
            return _steps(this, state, start)
        finally:
            console.close()
            writer.close()
    finally:
        checkpoints.close()


def _steps(run, state, start):
    """Runs the steps from `start`, each followed by what is due after it."""
    train = run.config.train
    if start >= train.num_steps:
        return {}
    batches = run.data.train_batches(start)
    preemption = Preemption()
    try:
        batch = next(batches)
        step_fn, flops = _compile(run, state, batch)
        watch = Stopwatch(train.batch_size, flops, run.mesh.size)
        window, last = [], {}
        for done in range(start + 1, train.num_steps + 1):
            state, metrics = step_fn(state, run.frozen, batch)
            window.append(metrics)
            run.console.advance()
            final, stop = done == train.num_steps, preemption.requested(done)
            if not (final or stop):
                # The device computes while the next batch is fetched.
                with watch.waiting():
                    batch = next(batches)
            if final or done % train.log_every == 0:
                last, window = _log(run, done, window, watch), []
            if _due(train, done, final, stop):
                # What is still being computed is not part of the pause.
                jax.block_until_ready(state)
                with watch.paused():
                    window = _after_step(run, done, state, window, final, stop)
            if stop:
                run.console.line(f"step {done}: asked to stop; saved, leaving")
                break
        return last
    finally:
        preemption.close()
        batches.close()


def _due(train, done, final, stop):
    """Whether something is to be done after this step."""
    intervals = (train.checkpoint_every, train.eval_every, train.preview_every)
    return final or stop or any(done % interval == 0 for interval in intervals)


def _after_step(run, done, state, window, final, stop):
    """Saves, evaluates and draws previews where it is time to."""
    train = run.config.train
    if final or stop or done % train.checkpoint_every == 0:
        # What is saved must be finite: the rest of the window is checked first.
        window = jax.device_get(window)
        _check(run, done, window)
        run.checkpoints.save(done, state, run.meta)
    if not stop and (final or done % train.eval_every == 0):
        show(run, evaluate, done, state)
    if not stop and (final or done % train.preview_every == 0):
        show(run, preview, done, state)
    return window


def _check(run, done, window):
    check_finite(done - len(window) + 1, window, run.checkpoints.latest_step)


def _compile(run, state, batch):
    """Compiles the training step; returns it and its floating-point operations."""
    step = jax.jit(
        run.stage.train_step,
        donate_argnums=0,
        out_shardings=(run.shardings, sharding.replicated(run.mesh)),
    )
    start = time.perf_counter()
    lowered = step.lower(state, run.frozen, batch)
    flops = count_flops(lowered)
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
    size = f", {flops / 1e12:.3g} TFLOP per step" if flops else ""
    run.console.line(f"compiled the training step in {seconds:.1f} s{size}")
    return compiled, flops


def _log(run, done, window, watch):
    """Averages the metrics since the last line and writes them."""
    window = jax.device_get(window)
    _check(run, done, window)
    means = {name: float(np.mean([m[name] for m in window])) for name in window[-1]}
    # A rate is not averaged: the line says what it is now.
    means["learning_rate"] = float(window[-1]["learning_rate"])
    means |= watch.lap(len(window))
    run.writer.scalars(done, means)
    run.console.line(format_metrics(done, run.config.train.num_steps, means))
    warning = plateau_warning(
        done, means, run.config.train.warmup_steps, means["learning_rate"]
    )
    if warning:
        run.console.line(warning)
    return means
