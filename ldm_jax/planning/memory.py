"""What a device must hold for a run: its arrays, and what a step computes with them."""

import collections
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh

from ldm_jax import sharding
from ldm_jax.planning.abstract import Planned, shardings_of
from ldm_jax.planning.liveness import Lifetimes, aval_bytes

# Rows of a batch that is traced: no other side of an array is a multiple of it.
ROWS = 127


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes per device.

    Attributes:
      parameters: What is trained, and held beside it.
      optimiser: State of the optimisers.
      average: Moving average of the parameters.
      statistics: Statistics that no gradient trains.
      frozen: Weights that are used and not trained.
      batch: The batch of a step.
      gradients: All gradients, as they are at the end of the backward pass; of these
        the peak holds what is there by then.
      activations: What the peak holds that grows with the batch: mostly what the
        forward pass keeps for the backward one.
      fixed: What it holds that does not: weights in the compute type, gradients.
      moving: What the operation at the peak reads for the last time, or writes.
    """

    parameters: int
    optimiser: int
    average: int
    statistics: int
    frozen: int
    batch: int
    gradients: int
    activations: int
    fixed: int
    moving: int

    @property
    def arguments(self) -> int:
        """Arrays that are there all the time."""
        kept = self.parameters + self.optimiser + self.average + self.statistics
        return kept + self.frozen + self.batch

    @property
    def temporary(self) -> int:
        """What a step takes beside them at its peak."""
        return self.activations + self.fixed + self.moving

    @property
    def peak(self) -> int:
        """The most at once."""
        return self.arguments + self.temporary


class MemoryOf:
    """The memory of a stage for meshes and batches; it is traced once."""

    def __init__(self, planned: Planned) -> None:
        """Traces the step.

        Args:
          planned: Planned.
        """
        self._planned = planned
        self.parts = planned.config.train.accumulate_steps
        arguments = (
            planned.state,
            planned.stage.frozen,
            planned.batch(ROWS * self.parts),
        )
        self._step = jax.make_jaxpr(planned.stage.train_step)(*arguments)
        self._lifetimes: dict[tuple[int, bool], Lifetimes] = {}

    @property
    def jaxpr(self) -> Any:
        """The traced step, for a batch of ROWS rows for each micro-batch."""
        return self._step

    def on(self, mesh: AbstractMesh, batch_size: int, parts: int) -> Memory:
        """Counts for a mesh and a batch.

        Args:
          mesh: Mesh, abstract or of devices.
          batch_size: Images per step, over all devices.
          parts: Micro-batches; other than those that were traced, one at least, they
            take a sum of gradients more.

        Returns:
          Memory.
        """
        planned, fsdp = self._planned, mesh.shape["fsdp"]
        state, frozen = shardings_of(planned, mesh)
        bytes_of = {
            name: _split_bytes(getattr(planned.state, name), getattr(state, name))
            for name in ("params", "opt_state", "ema_params", "stats")
        }
        rows, key = batch_size // mesh.size, (fsdp, mesh.size > 1)
        if key not in self._lifetimes:
            split = _split_by(fsdp, (planned.state.params, state.params))
            self._lifetimes[key] = Lifetimes(self._step, ROWS, split, mesh.size > 1)
        peak = self._lifetimes[key].peak(rows // parts)
        example = planned.batch(rows)
        summed = bytes_of["params"] if parts > 1 == self.parts else 0
        return Memory(
            parameters=bytes_of["params"],
            optimiser=bytes_of["opt_state"],
            average=bytes_of["ema_params"],
            statistics=bytes_of["stats"],
            frozen=_split_bytes(planned.stage.frozen, frozen),
            batch=sum(map(aval_bytes, example.values())),
            gradients=bytes_of["params"],
            activations=round(peak.activations),
            fixed=round(peak.fixed) + summed,
            moving=round(peak.moving),
        )


def _split_bytes(tree, shardings):
    """Bytes per device of a tree of shapes."""

    def size(leaf, split):
        shape = split.shard_shape(leaf.shape)
        return aval_bytes(jax.ShapeDtypeStruct(shape, leaf.dtype))

    return sum(jax.tree.leaves(jax.tree.map(size, tree, shardings)))


def _split_by(fsdp: int, trained: tuple) -> Callable[[Sequence[int]], float]:
    """Shape of a gradient -> over how many devices it is split.

    Parameters of one shape may be split differently (`train.sharding_overrides`): as
    all gradients are there in the end, each counts as their mean.
    """
    sizes, parts = collections.Counter(), collections.Counter()

    def add(leaf, split):
        sizes[leaf.shape] += leaf.size
        parts[leaf.shape] += math.prod(split.shard_shape(leaf.shape))

    jax.tree.map(add, *trained)

    def split(shape: Sequence[int]) -> float:
        if not math.prod(shape):
            return 1
        if shape in sizes:
            return sizes[shape] / parts[shape]
        return fsdp if sharding.parameter_spec(shape, fsdp) else 1

    return split
