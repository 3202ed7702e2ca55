"""Attention with the kernel that the table selects, and a record of the choices."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax.numpy as jnp

from ldm_jax.annotations import Array, Bool, Float
from ldm_jax.models.operations.kernels import AUTO, KERNELS, Shape, choose

# Attentions traced within `noted`: (kernel, Shape) of each.
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
      mask: Bool [T, S], whether a query attends to a key, at least one for each query;
        None if all attend to all.
      kernel: Row of KERNELS; AUTO for the one that the table selects.

    Returns:
      [B, heads, T, d] in the type of `query`.

    Raises:
      ConfigError: If `kernel` is unknown, or does not support this on this device.
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
    """Attentions of a program: (row of KERNELS, Shape) of each, in order of tracing."""

    def __str__(self) -> str:
        """One line: each kernel with the tokens x tokens, heads x width it computes."""
        found = {}
        for name, shape in self:
            found.setdefault(name, {})[str(shape)] = True
        parts = (f"{name} {', '.join(shapes)}" for name, shapes in found.items())
        return "; ".join(parts)


@contextlib.contextmanager
def noted() -> Iterator[Notes]:
    """Records the attentions that are traced within the context.

    Yields:
      Notes, to which they are appended.
    """
    notes = Notes()
    token = _NOTES.set(notes)
    try:
        yield notes
    finally:
        _NOTES.reset(token)
