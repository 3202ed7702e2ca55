"""The order of a step on several devices: gradients of weights come last.

Gradients of weights are summed over devices, many in one message, and only the
optimiser reads the sums.  XLA computes all gradients of activations first and those of
weights after them, however small the messages are.  Until then everything that they
read stays in memory: the values kept by the forward pass, and the gradients of
activations.
"""

from typing import Any

from ldm_jax.planning.flatten import Program
from ldm_jax.planning.primitives import HEAVY, REDUCTIONS


def grows(aval: Any, rows: int) -> bool:
    """Returns whether a value grows with the batch.

    Args:
      aval: Its shape and type.
      rows: Rows of the batch that was traced, a prime.

    Returns:
      Whether the size of an axis is a multiple of `rows`.
    """
    return any(side and side % rows == 0 for side in getattr(aval, "shape", ()))


def with_sums_last(program: Program, rows: int) -> Program:
    """Moves steps that only sums over the batch need to the end.

    Args:
      program: Program, traced for a batch.
      rows: Rows of the batch, a prime.

    Returns:
      The same steps: first those needed by an operation that writes an array with rows
      to memory, then the others, both in their order.
    """
    needed: set[int] = set()
    first, last = [], []
    for step in reversed(program.steps):
        written = step.name in HEAVY or step.name.startswith(REDUCTIONS)
        with_rows = any(grows(program.avals[value], rows) for value in step.outputs)
        if (written and with_rows) or not needed.isdisjoint(step.outputs):
            needed.update(step.inputs)
            first.append(step)
        else:
            last.append(step)
    return program._replace(steps=first[::-1] + last[::-1])
