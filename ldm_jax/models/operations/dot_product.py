"""Attention by the kernel that the table has for it, and a note of what that was."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax.numpy as jnp

from ldm_jax.annotations import Array, Bool, Float
from ldm_jax.models.operations.kernels import AUTO, KERNELS, Shape, choose

# Attentions traced since `noted` began: (kernel, Shape) of each.
_NOTES: contextvars.ContextVar[list | None] = contextvars.ContextVar(
    "attentions", default=None
)


def dot_product_attention(
    query: Float[Array, "batch heads length channels"],
    key: Float[Array, "batch heads source channels"],
    value: Float[Array, "batch heads source channels"],
    mask: Bool[Array, "length source"] | None = None,
    kernel: str = AUTO,
) -> Float[Array, "batch heads length channels"]:
    """Scaled dot-product attention (Vaswani et al. 2017, Eq. 1), softmax in float32.

    Args:
      query: [B, heads, T, d].
      key: [B, heads, S, d].
      value: [B, heads, S, d].
      mask: Bool [T, S], whether a query attends to a key; each query attends to at
        least one. None where each attends to all.
      kernel: Row of KERNELS; AUTO for the one that the table has for it.

    Returns:
      [B, heads, T, d] in the type of `query`.

    Raises:
      ConfigError: If `kernel` is unknown, or cannot compute this on this device.
    """
    batch, heads, length, width = query.shape
    dtype = jnp.dtype(query.dtype).name
    masked = mask is not None
    shape = Shape(batch, heads, length, key.shape[2], width, dtype, masked)
    name = choose(shape, kernel)
    notes = _NOTES.get()
    if notes is not None:
        notes.append((name, shape))
    return KERNELS[name].run(query, key, value, mask)


class Notes(list):
    """Attentions of a program: (row of KERNELS, Shape) of each, as they are traced."""

    def __str__(self) -> str:
        """One line: kernels, and tokens x tokens, heads x width of all they compute."""
        found = {}
        for name, shape in self:
            found.setdefault(name, {})[str(shape)] = True
        parts = (f"{name} {', '.join(shapes)}" for name, shapes in found.items())
        return "; ".join(parts)


@contextlib.contextmanager
def noted() -> Iterator[Notes]:
    """Notes the attentions that are traced within.

    Yields:
      Notes, which fill up.
    """
    notes = Notes()
    token = _NOTES.set(notes)
    try:
        yield notes
    finally:
        _NOTES.reset(token)
