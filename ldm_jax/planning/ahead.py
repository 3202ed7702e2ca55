"""Compiles the programs of a run ahead of time: their memory, and cached for the run.

They are the programs of the training loop with the same arguments, so that the run
finds them in the persistent compilation cache.
"""

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator

import jax
from jax import monitoring
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ldm_jax import peers, sharding
from ldm_jax.config import build
from ldm_jax.planning.abstract import Planned, shardings_of
from ldm_jax.seeds import make_key
from ldm_jax.training.compiled import image_shape, jit_init, jit_step


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program, with its memory in bytes per device.

    Attributes:
      name: What it does, and on which shape of images or latents.
      seconds: Time of compiling, or of reading it from the cache.
      found: Whether it was in the cache.
      arguments: Bytes of its arguments.
      results: Bytes of its results that do not reuse donated arguments.
      temporary: Bytes of its temporaries.
    """

    name: str
    seconds: float
    found: bool
    arguments: int
    results: int
    temporary: int

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.arguments + self.results + self.temporary


def find_mesh(sizes: ConfigDict) -> Mesh:
    """Makes the mesh of a run over the available devices; call it before any is used.

    Args:
      sizes: Config section `train.mesh`.

    Returns:
      Mesh of all accelerators of the job; if there are none, of as many simulated CPU
      devices as the section has, with 1 in place of -1.

    Raises:
      ConfigError: If the sizes do not multiply to the number of accelerators.
    """
    count = math.prod(max(size, 1) for size in sizes.values())
    if not peers.several():
        jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices()
    if devices[0].platform == "cpu" and not peers.several():
        devices = devices[:count]
    return build(sharding.make_mesh, sizes, "train.mesh", devices=devices)


def compile_ahead(planned: Planned, mesh: Mesh, batch_size: int) -> list[Program]:
    """Compiles the initialisation of the state, and the step for each batch shape.

    Args:
      planned: Planned.
      mesh: Mesh of all devices of the run.
      batch_size: Global batch size.

    Returns:
      Program of "init", then of each step, that with the most pixels first.
    """
    state, _ = shardings_of(planned, mesh)
    key = jax.eval_shape(lambda: make_key(planned.config.seed))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype)
    drawn = jit_init(planned.stage.init, state, mesh)
    init = _compile("init", lambda: drawn.lower(key))
    shapes = range(len(planned.examples))
    return [init, *(compile_step(planned, mesh, batch_size, i) for i in shapes)]


def compile_step(
    planned: Planned, mesh: Mesh, batch_size: int, index: int = 0
) -> Program:
    """Compiles the training step for one batch shape.

    Args:
      planned: Planned.
      mesh: Mesh of all devices of the run.
      batch_size: Global batch size.
      index: Index of the shape of images in `planned.examples`.

    Returns:
      Program.
    """
    shape = image_shape(planned.batch(batch_size, index))
    lower = functools.partial(lower_step, planned, mesh, batch_size, index)
    return _compile(f"step of {shape}", lower)


def lower_step(
    planned: Planned, mesh: Mesh, batch_size: int, index: int = 0
) -> jax.stages.Lowered:
    """Lowers the training step for one batch shape.

    Args:
      planned: Planned.
      mesh: Mesh of all devices of the run.
      batch_size: Global batch size.
      index: Index of the shape of images in `planned.examples`.

    Returns:
      The lowered step, ready to be compiled.
    """
    state, frozen = shardings_of(planned, mesh)
    batch = planned.batch(batch_size, index)
    split = dict.fromkeys(batch, sharding.batch_sharding(mesh))
    return jit_step(planned.stage.train_step, state, mesh).lower(
        sharding.abstract_like(planned.state, state),
        sharding.abstract_like(planned.stage.frozen, frozen),
        sharding.abstract_like(batch, split),
    )


def _compile(name: str, lower: Callable[[], jax.stages.Lowered]) -> Program:
    start = time.perf_counter()
    peers.progress()
    with _watched() as found:
        program = lower().compile()
    peers.progress()
    seconds = time.perf_counter() - start
    sizes = program.memory_analysis()
    return Program(
        name=name,
        seconds=seconds,
        found=found(),
        arguments=sizes.argument_size_in_bytes,
        results=sizes.output_size_in_bytes - sizes.alias_size_in_bytes,
        temporary=sizes.temp_size_in_bytes,
    )


@contextlib.contextmanager
def _watched() -> Iterator[Callable[[], bool]]:
    """Yields a function: whether the block has taken a program from the cache."""
    hits = []

    def note(event, **_):
        hits.extend([event] * event.endswith("/compilation_cache/cache_hits"))

    monitoring.register_event_listener(note)
    try:
        yield lambda: bool(hits)
    finally:
        monitoring.unregister_event_listener(note)
