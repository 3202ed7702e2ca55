"""What makes a run fit that does not: each way is computed, the simplest first."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from jax.sharding import AbstractMesh
from ml_collections import ConfigDict

from ldm_jax.planning.memory import Memory, MemoryOf

# Section of each stage that takes `remat`.
_REMAT = {"autoencoder": "first_stage", "diffusion": "backbone"}


class Way(NamedTuple):
    """A change of a run, and what it would take.

    Attributes:
      flags: What to add to the command line of the run.
      memory: Memory after the change.
      fits: Whether that is less than the chip has.
      cost: What it costs, in words.
    """

    flags: str
    memory: Memory
    fits: bool
    cost: str


def ways_to_fit(
    config: ConfigDict,
    mesh: AbstractMesh,
    limit: float,
    memory: MemoryOf,
    with_remat: Callable[[ConfigDict], MemoryOf],
) -> list[Way]:
    """Tries, in this order: more micro-batches, remat, fsdp, and then all together.

    Args:
      config: ConfigDict.
      mesh: Mesh with the axes `data` and `fsdp`.
      limit: Bytes that a device may hold.
      memory: MemoryOf the config as it is.
      with_remat: Gives that of a changed config.

    Returns:
      For each the least change that fits, or else the largest that can be; all together
      only where none fits alone.
    """
    trials = _Trials(config, mesh, limit)
    ways = list(trials.tries(memory, ""))
    section = _REMAT.get(config.stage)
    if section is None or config[section].get("remat"):
        return ways
    changed = config.copy_and_resolve_references()
    changed[section].remat = True
    flag = f"--config.{section}.remat=True"
    memory = with_remat(changed)
    parts = config.train.accumulate_steps
    alone = trials.way(memory, flag, mesh, parts)
    ways.insert(1 if trials.can_accumulate else 0, alone)
    if not any(way.fits for way in ways):
        ways += trials.tries(memory, flag)
    if not any(way.fits for way in ways):
        ways += trials.together(memory, flag)
    return ways


class _Trials(NamedTuple):
    """Changes of a run that would take less memory, each computed.

    Attributes:
      config: ConfigDict of the run.
      mesh: Its mesh.
      limit: Bytes that a device may hold.
    """

    config: ConfigDict
    mesh: AbstractMesh
    limit: float

    @property
    def can_accumulate(self):
        """Whether a batch divides into more micro-batches than the config has."""
        return bool(self._parts())

    def _parts(self):
        """Numbers of micro-batches beyond those of the config."""
        train = self.config.train
        rows = train.batch_size // self.mesh.size
        least = train.accumulate_steps
        return [n for n in range(least + 1, rows + 1) if rows % n == 0]

    def tries(self, memory: MemoryOf, flag: str) -> Iterator[Way]:
        """Yields the Ways of the least number of micro-batches, and the least `fsdp`.

        `memory` says what a mesh and a batch take, `flag` is set in each of them. Where
        nothing fits, the last that was tried is given: `fits` says so.
        """
        parts = self.config.train.accumulate_steps
        mesh = self.mesh
        yield from self._least(
            (f"--config.train.accumulate_steps={n}", mesh, n) for n in self._parts()
        )(memory, flag)
        yield from self._least(
            (f"--config.train.mesh.fsdp={m.shape['fsdp']}", m, parts)
            for m in self._meshes()
        )(memory, flag)

    def together(self, memory: MemoryOf, flag: str) -> list[Way]:
        """The Way of the least number of micro-batches with the largest `fsdp`, if any.

        Arguments and what fits as in `tries`.
        """
        mesh = next(reversed(list(self._meshes())), None)
        if mesh is None:
            return []
        text = f"--config.train.mesh.fsdp={mesh.shape['fsdp']} --config.train"
        changes = ((f"{text}.accumulate_steps={n}", mesh, n) for n in self._parts())
        return self._least(changes)(memory, flag)

    def _meshes(self):
        """Meshes of as many devices that split parameters over more of them."""
        size, fsdp = self.mesh.size, self.mesh.shape["fsdp"]
        for width in range(fsdp + 1, size + 1):
            if size % width == 0:
                yield AbstractMesh((size // width, width), ("data", "fsdp"))

    def _least(self, changes):
        def first(memory, flag):
            last = None
            for flags, mesh, parts in changes:
                last = self.way(memory, f"{flag} {flags}".strip(), mesh, parts)
                if last.fits:
                    break
            return [last] if last else []

        return first

    def way(self, memory: MemoryOf, flags: str, mesh: AbstractMesh, parts: int) -> Way:
        """What a change would take, as a Way.

        `memory` says what a mesh and a batch take, `flags` are what a user adds, `mesh`
        and `parts` (micro-batches) what becomes of the run by them.
        """
        found = memory.on(mesh, self.config.train.batch_size, parts)
        costs = []
        if "remat" in flags:
            costs.append("computes most of the forward pass twice")
        if "accumulate" in flags:
            costs.append("the same batch in smaller parts, one after another")
        if "fsdp" in flags:
            costs.append("parameters travel between devices in every step")
        return Way(flags, found, found.peak <= self.limit, "; ".join(costs))
