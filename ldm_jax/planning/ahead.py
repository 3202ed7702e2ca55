"""The programs of a run, compiled ahead of it: what they take, and kept for the run.

They are those of the loop, of the same arguments, so that the persistent compilation
cache has them when the run asks for them.
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
    """A compiled program, in bytes per device.

    Attributes:
      name: What it does, and on which shape of images or latents.
      seconds: What compiling took, or reading where it was stored before.
      found: Whether the cache had it before.
      arguments: What it reads.
      results: What it writes beside what it writes over.
      temporary: What it takes beside both.
    """

    name: str
    seconds: float
    found: bool
    arguments: int
    results: int
    temporary: int

    @property
    def total(self) -> int:
        """All that it needs."""
        return self.arguments + self.results + self.temporary


def find_mesh(sizes: ConfigDict) -> Mesh:
    """Makes the mesh of a run over the devices that are here, before any is used.

    Args:
      sizes: Config section `train.mesh`.

    Returns:
      Mesh of all accelerators of the job; where there are none, of as many devices of
      the CPU as the section says, one in place of -1.

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
    """Compiles what draws the state, and the step for each shape of a batch.

    Args:
      planned: Planned.
      mesh: Mesh of devices, over all that the run has.
      batch_size: Images per step, over all devices.

    Returns:
      Program of "init", then of each step, that of the most pixels first.
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
    """Compiles the step for a shape of a batch.

    Args:
      planned: Planned.
      mesh: Mesh of devices, over all that the run has.
      batch_size: Images per step, over all devices.
      index: Which of the shapes of images.

    Returns:
      Program.
    """
    shape = image_shape(planned.batch(batch_size, index))
    lower = functools.partial(lower_step, planned, mesh, batch_size, index)
    return _compile(f"step of {shape}", lower)


def lower_step(
    planned: Planned, mesh: Mesh, batch_size: int, index: int = 0
) -> jax.stages.Lowered:
    """Traces the step for a shape of a batch.

    Args:
      planned: Planned.
      mesh: Mesh of devices, over all that the run has.
      batch_size: Images per step, over all devices.
      index: Which of the shapes of images.

    Returns:
      The step, to be compiled.
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
    """Gives a function: whether a program was taken from the cache within."""
    hits = []

    def note(event, **_):
        hits.extend([event] * event.endswith("/compilation_cache/cache_hits"))

    monitoring.register_event_listener(note)
    try:
        yield lambda: bool(hits)
    finally:
        monitoring.unregister_event_listener(note)
