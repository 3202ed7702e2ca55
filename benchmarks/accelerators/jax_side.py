"""Our side of a part: the modules and the training step of `train.py`."""

import json
import pathlib
import sys
import time
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.accelerators.kernels import profile
from benchmarks.accelerators.parts import (
    FEATURES,
    GUIDANCE_SCALE,
    NUM_STEPS,
    Part,
    part_of,
)
from benchmarks.accelerators.timing import Turn, measure
from ldm_jax import generate, sharding
from ldm_jax.chips import chip_of
from ldm_jax.cli import load_config
from ldm_jax.flops import count_flops
from ldm_jax.planning.abstract import Given, make_planned, shardings_of
from ldm_jax.planning.forward import networks
from ldm_jax.seeds import make_key
from ldm_jax.training.compiled import jit_init, jit_step


def load(part: Part, tiny: bool) -> Any:
    """Loads the config of a part.

    Args:
      part: Part.
      tiny: Whether to use toy networks.

    Returns:
      ConfigDict.
    """
    config = load_config(part.config + (",tiny" if tiny else ""))
    with config.unlocked(), config.ignore_type():
        for key, value in part.changes.items():
            section, _, name = key.rpartition(".")
            holder = config
            for step in section.split(".") if section else ():
                holder = holder[step]
            holder[name] = value
        if part.image_size and not tiny:
            config.data.image_size = part.image_size
        if part.first_stage and part.cached and part.task == "train":
            config.data.source = "latents"
        config.train.batch_size = part.batch_size
        for section in ("backbone", "first_stage", "discriminator"):
            if "dtype" in config.get(section, {}) and not tiny:
                config[section].dtype = "bfloat16"
    return config


def _plan(part, tiny):
    first = part.first_stage and part.first_stage + (",tiny" if tiny else "")
    config = load(part, tiny)
    given = Given(first, 1000 if not tiny else 9, FEATURES)
    return make_planned(config, given)


def _compile(function, *arguments):
    """(compiled program of a jitted function, seconds of tracing and compiling)."""
    start = time.perf_counter()
    program = function.lower(*arguments).compile()
    return program, time.perf_counter() - start


# Size of the pool of numbers that weights and inputs are filled from.
_POOL = 2**22


def _draw(shapes):
    """Random arrays of these shapes on the device; integers are small.

    Drawn on the host, as a program that draws them all takes minutes to compile.
    """
    pool = np.random.default_rng(0).standard_normal(_POOL, np.float32)

    def make(path, leaf):
        # Each starts elsewhere in the pool, at the same place in every process.
        start = zlib.crc32(str(path).encode()) % (_POOL // 2)
        drawn = np.resize(pool[start:], leaf.shape)
        if jnp.issubdtype(leaf.dtype, jnp.integer):
            return jnp.asarray(np.abs(4 * drawn) % 8, leaf.dtype)
        scale = 1 / np.sqrt(np.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 1.0
        return jnp.asarray(abs(drawn) if leaf.ndim < 2 else scale * drawn, leaf.dtype)

    return jax.tree_util.tree_map_with_path(make, shapes)


def train(part: Part, tiny: bool, turn: Turn) -> dict[str, Any]:
    """Measures a training step.

    Args:
      part: Part.
      tiny: Whether to use toy networks.
      turn: Turn.

    Returns:
      Row.
    """
    planned = _plan(part, tiny)
    batch = planned.batch(part.batch_size)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    shardings, _ = shardings_of(planned, mesh)
    state = jit_init(planned.stage.init, shardings, mesh)(make_key(0))
    frozen, data = _draw(planned.stage.frozen), _draw(batch)
    # FLOPs of the published network, so that utilisation is comparable to others'.
    flops = sum(network.training for network in networks(planned).values())
    flops *= part.batch_size
    step = jit_step(planned.stage.train_step, shardings, mesh)
    step, compiled = _compile(step, state, frozen, data)
    # [state, metrics]; the state is passed from step to step.
    made = [state, None]
    del state

    def call():
        made[:] = step(made[0], frozen, data)

    def wait():
        jax.block_until_ready(made)

    timed = measure(call, wait, turn)
    return _row(timed, compiled, flops, part, lambda: profile(call, wait))


def sample(part: Part, tiny: bool, turn: Turn) -> dict[str, Any]:
    """Measures guided sampling, including decoding.

    Args:
      part: Part.
      tiny: Whether to use toy networks.
      turn: Turn.

    Returns:
      Row.
    """
    draw, shapes = plan_sampling(part, tiny)
    *given, keys = shapes
    keys = jax.random.split(jax.random.key(0), len(keys))
    arguments = *map(_draw, given), keys
    flops = count_flops(jax.make_jaxpr(draw)(*arguments).jaxpr)
    program, compiled = _compile(sharding.jit(draw), *arguments)
    made = []

    def call():
        made[:] = [program(*arguments)]

    def wait():
        jax.block_until_ready(made)

    timed = measure(call, wait, turn)
    return _row(timed, compiled, flops, part, lambda: profile(call, wait))


def plan_sampling(part: Part, tiny: bool) -> tuple[Callable, tuple]:
    """Prepares guided sampling, including decoding; nothing is computed.

    Args:
      part: Part.
      tiny: Whether to use toy networks.

    Returns:
      (function of weights, frozen weights, inputs and keys; their shapes).
    """
    planned = _plan(part, tiny)
    model, side = planned.model, planned.config.data.image_size
    entries = model.conditioner.entries
    inputs = {k: v for k, v in planned.batch(part.batch_size).items() if k in entries}
    options = generate.SampleOptions(
        num_steps=NUM_STEPS,
        size=(side, side),
        guidance=generate.GuidanceOptions(scale=GUIDANCE_SCALE),
    )
    key = jax.random.key(0)
    keys = jax.eval_shape(lambda: jax.random.split(key, part.batch_size))

    def draw(params, frozen, inputs, keys):
        return generate.sample_images(model, params, frozen, inputs, keys, options)

    return draw, (planned.state.ema_params, planned.stage.frozen, inputs, keys)


def _row(timed, compiled, flops, part, profiled):
    device = jax.devices()[0]
    chip, stats = chip_of(device.device_kind), device.memory_stats() or {}
    tflops = flops / timed.seconds / 1e12
    return {
        "ms": 1e3 * timed.seconds,
        "spread": timed.spread,
        "images_per_s": part.batch_size / timed.seconds,
        "tflops_per_s": tflops,
        "utilisation": tflops / chip.tflops if chip else None,
        "peak_gb": stats.get("peak_bytes_in_use", float("nan")) / 1e9,
        "compile_s": compiled,
        "first_call_s": timed.first,
        "tflop": flops / 1e12,
        **profiled(),
        "device": device.device_kind,
        "versions": f"jax {jax.__version__}",
    }


def main() -> None:
    """Measures a part; arguments: name, "tiny" or "full", lock file, row's file."""
    name, size, turn, target = sys.argv[1:]
    tiny = size == "tiny"
    part = part_of(name, tiny)
    row = {"train": train, "sample": sample}[part.task](part, tiny, Turn(turn))
    pathlib.Path(target).write_text(json.dumps(row))


if __name__ == "__main__":
    main()
