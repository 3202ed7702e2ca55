"""Changes that make a run fit in memory: each is computed, the simplest first."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from jax.sharding import AbstractMesh
from ml_collections import ConfigDict

from ldm_jax.planning.memory import Memory, MemoryOf

# Section of each stage that takes `remat`.
_REMAT = {"autoencoder": "first_stage", "diffusion": "backbone"}


class Way(NamedTuple):
    """A change of a run that takes less memory.

    Attributes:
      flags: Flags to add to the command line of the run.
      memory: Memory after the change.
      fits: Whether this is within the limit.
      cost: Drawbacks of the change, in words.
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
    """Tries more micro-batches, remat, fsdp, and then combinations of them.

    Args:
      config: ConfigDict.
      mesh: Mesh with the axes `data` and `fsdp`.
      limit: Bytes that a device may hold.
      memory: MemoryOf the unchanged config.
      with_remat: Function of a changed config -> its MemoryOf.

    Returns:
      For each the smallest change that fits, or else the largest possible one;
      combinations only if none fits alone.
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
    """Computes changes of a run that take less memory.

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
        """Whether the batch can be divided into more micro-batches than it is."""
        return bool(self._parts())

    def _parts(self):
        """Possible numbers of micro-batches above that of the config."""
        train = self.config.train
        rows = train.batch_size // self.mesh.size
        least = train.accumulate_steps
        return [n for n in range(least + 1, rows + 1) if rows % n == 0]

    def tries(self, memory: MemoryOf, flag: str) -> Iterator[Way]:
        """Yields Ways with the fewest micro-batches, and the smallest `fsdp`, that fit.

        `memory` computes the memory of a mesh and a batch, `flag` is part of each Way.
        If nothing fits, the last one that was tried is yielded, with `fits` False.
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
        """The Way with the fewest micro-batches and the largest `fsdp`, if any.

        Arguments and choice as in `tries`.
        """
        mesh = next(reversed(list(self._meshes())), None)
        if mesh is None:
            return []
        text = f"--config.train.mesh.fsdp={mesh.shape['fsdp']} --config.train"
        changes = ((f"{text}.accumulate_steps={n}", mesh, n) for n in self._parts())
        return self._least(changes)(memory, flag)

    def _meshes(self):
        """Meshes of the same number of devices with a larger `fsdp`."""
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
        """Computes the Way of a change.

        `memory` computes the memory of a mesh and a batch, `flags` are those that a
        user adds, `mesh` and `parts` (micro-batches) those of the changed run.
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
