"""The bilinear resize of TensorFlow 1, which FID's Inception-v3 was published with.

Corners of pixels are not aligned and centres are not halved: the new pixel i is read at
i * old / new, without antialiasing. Other resizes move FID by several tenths (Parmar et
al. 2022, "On Aliased Resizing and Surprising Subtleties in GAN Evaluation").
"""

import jax.numpy as jnp
import numpy as np

from ldm_jax.annotations import Array, Float, Num


def tensorflow_resize(
    images: Num[Array, "batch old_height old_width channels"], height: int, width: int
) -> Float[Array, "batch {height} {width} channels"]:
    """Resizes images as `tf.image.resize_bilinear` of TensorFlow 1.

    Args:
      images: [B, h, w, c], uint8 or floats.
      height: New height.
      width: New width.

    Returns:
      float32 [B, height, width, c], in the range of `images`; as they are where they
      have that size.
    """
    x = images.astype(jnp.float32)
    # Columns first, as TensorFlow does: so sums are rounded like theirs.
    x = _between(x, width, axis=2)
    return _between(x, height, axis=1)


def _between(x, new, axis):
    """Weighs each two neighbours along an axis; no product, which TPUs would round."""
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
