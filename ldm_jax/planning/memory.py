"""Memory of a run on each device: its arrays, and the temporaries of a step."""

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

# Rows of the batch that is traced: no other axis of an array is a multiple of it.
ROWS = 127


@dataclasses.dataclass(frozen=True)
class Memory:
    """Memory of a run, in bytes per device.

    Attributes:
      parameters: Parameters of the train state, trained or not.
      optimiser: State of the optimisers.
      average: Moving average of the parameters.
      statistics: Statistics that are not trained by gradients.
      frozen: Weights that are used but not trained.
      batch: The batch of a step.
      gradients: All gradients, as at the end of the backward pass; the peak holds those
        that exist by then.
      activations: Values at the peak that grow with the batch: mostly those that the
        forward pass keeps for the backward pass.
      fixed: Values at the peak that do not: weights in the compute type, gradients.
      moving: Values that the operation at the peak reads for the last time, or writes.
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
        """Bytes of the arguments of a step, which are always in memory."""
        kept = self.parameters + self.optimiser + self.average + self.statistics
        return kept + self.frozen + self.batch

    @property
    def temporary(self) -> int:
        """Bytes of a step's temporaries at its peak."""
        return self.activations + self.fixed + self.moving

    @property
    def peak(self) -> int:
        """Bytes in memory at the peak."""
        return self.arguments + self.temporary


class MemoryOf:
    """The memory of a stage for any mesh and batch size; it is traced only once."""

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
        """The traced step, with ROWS rows in each micro-batch."""
        return self._step

    def on(self, mesh: AbstractMesh, batch_size: int, parts: int) -> Memory:
        """Computes the memory for a mesh and a batch size.

        Args:
          mesh: Mesh or AbstractMesh.
          batch_size: Global batch size.
          parts: Number of micro-batches. If it is above 1 and the step was traced with
            one, the memory of a sum of gradients is added.

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
    """Makes the function: shape of a gradient -> number of devices it is split over.

    Parameters of one shape may be split differently (`train.sharding_overrides`). As
    all gradients are in memory in the end, each counts with the mean.
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
