"""Classifier-free guidance: two predictions of one batched network evaluation."""

import jax
import jax.numpy as jnp


def is_off(scale):
    """Whether a scale asks for no guidance; a traced scale never does."""
    return isinstance(scale, int | float) and scale == 1


def pair(null, conditioning):
    """Interleaves null and given conditioning for `guide`.

    Null and given lie side by side on the batch axis (0, 0', 1, 1', ...), not one half
    after the other, so that a sharded batch stays on its devices.

    Args:
      null: Pytree of arrays [B, ...], the conditioning that means "nothing known".
      conditioning: Pytree of the same structure and shapes.

    Returns:
      The same pytree with arrays [2 B, ...].
    """

    def interleave(a, b):
        return jnp.stack([a, b], axis=1).reshape(2 * a.shape[0], *a.shape[1:])

    return jax.tree.map(interleave, null, conditioning)


def guide(predict, scale):
    """Wraps a denoiser of paired conditioning so that it extrapolates from the null.

    Ho & Salimans 2022, Eq. 6 in the convention null + scale (given - null), where scale
    1 is the conditional model. x0, noise and any other parametrisation are affine in
    each other at given latents, so it does not matter which one is guided.

    Args:
      predict: Denoiser (latents, point) -> (x0, noise) for a batch of 2 B whose
        conditioning was interleaved by `pair`.
      scale: Guidance scale; a Python number or a traced scalar.

    Returns:
      Denoiser (latents, point) -> (x0, noise) for a batch of B.
    """

    def guided(latents, point):
        def extrapolate(output):
            null, given = jnp.moveaxis(output.reshape(-1, 2, *output.shape[1:]), 1, 0)
            return null + scale * (given - null)

        return jax.tree.map(extrapolate, predict(pair(latents, latents), point))

    return guided
