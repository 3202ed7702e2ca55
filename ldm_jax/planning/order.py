"""The order of a step on several devices: gradients of weights after all others.

Gradients of weights are summed over devices, many in one message, and the optimiser
alone reads the sums.  XLA goes through all gradients of activations first and computes
those of weights behind them, however small the messages are.  Until then all that they
read stays in memory: what the forward pass kept for them, and the gradients of
activations.
"""

from typing import Any

from ldm_jax.planning.flatten import Program
from ldm_jax.planning.primitives import HEAVY, REDUCTIONS


def grows(aval: Any, rows: int) -> bool:
    """Says whether a value grows with the batch.

    Args:
      aval: Its shape and type.
      rows: Rows of the batch that was traced, a prime.

    Returns:
      Whether a side is a multiple of `rows`.
    """
    return any(side and side % rows == 0 for side in getattr(aval, "shape", ()))


def with_sums_last(program: Program, rows: int) -> Program:
    """Puts what only sums over the batch need behind everything else.

    Args:
      program: Program, traced for a batch.
      rows: Its rows, a prime.

    Returns:
      The same steps: first those on which an operation depends that writes an array
      with rows to memory, then the others, both in their order.
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
