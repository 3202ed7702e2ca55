"""Tiny data and tiny runs of both stages for the tests of the loop and of sampling."""

import dataclasses
import importlib
import json
import os
import pathlib
import subprocess
import sys
from unittest import mock

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from ldm_jax import checkpoint, ranges
from ldm_jax.data.shapes import prepare
from ldm_jax.training import loop
from ldm_jax.training.start import opening
from ldm_jax.training.start.opened import Run
from ldm_jax.training.start.same_run import FREE_KEYS
from tests.flags import xla_flags

ROOT = pathlib.Path(__file__).parent.parent


STAGES = ["shapes_autoencoder", "shapes_class"]

# A codebook with a state of its own, on the sections of shapes_autoencoder.
VQ = {
    "first_stage": ConfigDict(
        dict(
            kind="vq",
            num_codes=16,
            channels=16,
            channel_mult=(1, 2),
            num_res_blocks=1,
            mid_attention=False,
            norm_groups=8,
            z_channels=4,
            embed_dim=4,
        )
    ),
    "loss__codebook_ema_decay": 0.9,
    "loss__restart_threshold": 0.95,
    "loss__lecam_weight": 0.1,
}

# What a run does without unless a test looks at it; so it is a third as long.
BARE = {
    "train__preview_images": 0,
    "data__eval_split": "",
    "train__checkpoint_every": 4,
}


def prepare_shapes(folder):
    """Writes a tiny copy of `shapes/32`; returns its data_dir."""
    prepare.prepare(str(folder), image_size=32, num_train=64, num_validation=12)
    return str(folder)


def tiny_config(name, data_dir, **overrides):
    """Loads `configs/<name>.py:tiny` on the tiny data.

    Args:
      name: Module in `configs`.
      data_dir: From `prepare_shapes`.
      **overrides: Dotted keys, written with "__" for the dots.

    Returns:
      A ConfigDict.
    """
    config = importlib.import_module(f"configs.{name}").get_config("tiny")
    config.data.data_dir = data_dir
    config.train.decay_steps = 100
    for key, value in overrides.items():
        section = config
        *path, last = key.split("__")
        for part in path:
            section = section[part]
        section[last] = value
    return config


def train(
    name,
    data_dir,
    workdir,
    devices=1,
    allow_config_change=False,
    whole=False,
    **overrides,
):
    """Runs a tiny config on so many devices; returns the last metrics logged.

    Evaluations, previews and the checkpoint halfway are left out, see BARE, unless the
    run is to be whole.
    """
    overrides = overrides if whole else BARE | overrides
    config = tiny_config(name, data_dir, **overrides)
    chosen = mock.patch.object(jax, "devices", lambda: jax.local_devices()[:devices])
    stages = {name: _traced_once(make) for name, make in opening.STAGES.items()}
    with chosen, mock.patch.object(opening, "STAGES", stages):
        return loop.run(config, workdir, allow_config_change)


# Keys of a config that no traced function depends on.
UNTRACED = set(FREE_KEYS) - {"sample", "eval", "train.sharding_overrides"}
UNTRACED |= {f"eval.{key}" for key in ranges.EVAL} - {"eval.levels"}
# The latest stages: what is compiled for one takes some 100 MB.
_TRACED = {}
_MOST_TRACED = 6


def _traced_once(make_stage):
    """Wraps a row of STAGES: runs of one config share their functions.

    JAX keeps what it traced and compiled of a function, so that the second of two runs
    of one config begins at once. Weights are those of each run.
    """

    def make(config, mesh, *others):
        stage, record = make_stage(config, mesh, *others)
        flat = flatten_dict(config.to_dict(), sep=".")
        # A rate that falls until the last step depends on it.
        falls = flat["train.decay"] != "constant" and not flat["train.decay_steps"]
        untraced = UNTRACED - {"train.num_steps"} if falls else UNTRACED
        flat = {k: v for k, v in flat.items() if k not in untraced}
        mesh = tuple(mesh.devices.flat), tuple(mesh.shape.items())
        key = json.dumps([flat, record], sort_keys=True, default=str), mesh
        first = _TRACED[key] = _TRACED.pop(key, stage)
        while len(_TRACED) > _MOST_TRACED:
            del _TRACED[next(iter(_TRACED))]
        own = {"frozen": stage.frozen, "initial": stage.initial}
        return first._replace(**own), record

    return make


def command(script, *arguments, devices=1):
    """Starts a script, or a module, of the repository in a process of its own."""
    program = [str(ROOT / script)] if script.endswith(".py") else ["-m", script]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": xla_flags(devices),
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".pytest_cache" / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    return subprocess.Popen(
        [sys.executable, *program, *map(str, arguments)],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def bare_run(**parts):
    """Makes a Run of nothing but the parts that a test is about."""
    names = (field.name for field in dataclasses.fields(Run))
    return Run(**dict.fromkeys(names) | {"start": 0, "meta": {}} | parts)


def finish(process, timeout=240):
    """Waits for a process; returns (exit status, what it printed)."""
    try:
        output, _ = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, output


def finish_all(processes, timeout=240):
    """Waits for processes of one job, each of which must end well."""
    try:
        for process in processes:
            status, output = finish(process, timeout)
            assert status == 0, output
    finally:
        # One that fails shall not leave the others behind.
        for process in processes:
            process.kill()
            process.communicate()


def assert_same_bits(first, second):
    """Checks that two pytrees hold the same bytes."""
    flat, tree = jax.tree.flatten(first)
    other, other_tree = jax.tree.flatten(second)
    assert tree == other_tree
    for a, b in zip(flat, other, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def stage_overrides(name, first_stage):
    """What a tiny run of either stage is told beside its config."""
    diffusion = {"first_stage__workdir": str(first_stage)}
    return diffusion if name == "shapes_class" else {}


def state_of(workdir, step=None):
    """All that a checkpoint holds of a training state."""
    folder = checkpoint.checkpoint_folder(workdir, step)
    items = ("params", "ema_params", "training")
    return {item: checkpoint.load_item(folder, item) for item in items}


def weights_of(workdir, average=False):
    """The newest weights of a run."""
    return checkpoint.load_weights(workdir, average=average)[1]
