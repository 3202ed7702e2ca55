"""The bilinear resize of TensorFlow 1, which FID's Inception-v3 was published with.

Neither corners are aligned nor pixel centres at one half: the new pixel i is read at
i * old / new, without antialiasing. Other resizes change FID by several tenths (Parmar
et al. 2022, "On Aliased Resizing and Surprising Subtleties in GAN Evaluation").
"""

import jax.numpy as jnp
import numpy as np

from ldm_jax.annotations import Array, Float, Num


def tensorflow_resize(
    images: Num[Array, "batch old_height old_width channels"], height: int, width: int
) -> Float[Array, "batch {height} {width} channels"]:
    """Resizes images like `tf.image.resize_bilinear` of TensorFlow 1.

    Args:
      images: [B, h, w, c], uint8 or floats.
      height: New height.
      width: New width.

    Returns:
      float32 [B, height, width, c], in the range of `images`; unchanged if they have
      that size already.
    """
    x = images.astype(jnp.float32)
    # Columns first, as in TensorFlow, so that sums are rounded in the same way.
    x = _between(x, width, axis=2)
    return _between(x, height, axis=1)


def _between(x, new, axis):
    """Interpolates neighbours along an axis; no matrix product, which TPUs round."""
    old = x.shape[axis]
    if old == new:
        return x
    source = np.arange(new, dtype=np.float32) * np.float32(old / new)
    before = source.astype(np.int32)
    after = np.minimum(before + 1, old - 1)
    shape = [1] * x.ndim
    shape[axis] = new
    fraction = (source - before.astype(np.float32)).reshape(shape)
    first, second = jnp.take(x, before, axis), jnp.take(x, after, axis)
    return first + (second - first) * fraction
