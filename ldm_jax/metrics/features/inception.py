"""The Inception-v3 of FID: the classifier of 2015-12-05 that TensorFlow published.

Szegedy et al. 2016, as Heusel et al. 2017 use it. It is not torchvision's network: it
has 1008 classes, its average pooling does not count the border's zeros, and its last
block takes the maximum instead. Batch normalisation is folded into the convolutions.

Branches that begin with a 1x1 convolution of the same input are one matrix product.
Average pooling follows its convolution instead of preceding it, which gives the same
with fewer additions.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from ldm_jax.annotations import Array, Float

SIZE = 299
# Tap -> number of features. "logits" are without the bias, as in published inception
# scores; "spatial" is for sFID (Nash et al. 2021): 7 channels of the 17 x 17 map that
# guided-diffusion calls mixed_6/conv, here Mixed_6d.branch1x1.
WIDTHS = {
    "64": 64,
    "192": 192,
    "768": 768,
    "2048": 2048,
    "logits": 1008,
    "spatial": 17 * 17 * 7,
}
_SPATIAL_CHANNELS = 7


class Inception(nn.Module):
    """Maps images to features after several of its layers.

    Parameters are named after the layers of the published files: "Mixed_5b.branch1x1"
    has "kernel" [height, width, in, out] and "bias" [out].

    """

    @nn.compact
    def __call__(
        self, images: Float[Array, f"batch {SIZE} {SIZE} 3"]
    ) -> Mapping[str, Float[Array, "batch _features"]]:
        """Computes the features of all taps.

        Args:
          images: [B, 299, 299, 3], (x - 128) / 128 of 8-bit images.

        Returns:
          Dict of tap -> float32 [B, D], see WIDTHS. Under jit, unused taps are not
          computed.
        """
        x = self._conv(images, "Conv2d_1a_3x3", 32, 3, stride=2)
        x = self._conv(x, "Conv2d_2a_3x3", 32, 3)
        x = self._conv(x, "Conv2d_2b_3x3", 64, 3, pad=True)
        x = _max_pool(x)
        taps = {"64": _mean(x)}
        x = self._pointwise(x, {"Conv2d_3b_1x1": 80})[0]
        x = self._conv(x, "Conv2d_4a_3x3", 192, 3)
        x = _max_pool(x)
        taps["192"] = _mean(x)
        for name, pooled in (("5b", 32), ("5c", 64), ("5d", 64)):
            x = self._block_35(x, f"Mixed_{name}", pooled)
        x = self._to_17(x, "Mixed_6a")
        for name, width in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
            x = self._block_17(x, f"Mixed_{name}", width)
            if name == "6d":
                # The first channels of the block's first branch, for sFID.
                taps["spatial"] = x[..., :_SPATIAL_CHANNELS].reshape(len(x), -1)
        taps["768"] = _mean(x)
        x = self._to_8(x, "Mixed_7a")
        x = self._block_8(x, "Mixed_7b")
        x = self._block_8(x, "Mixed_7c", largest=True)
        taps["2048"] = x = _mean(x)
        kernel, _ = self._weights("fc", (2048, WIDTHS["logits"]))
        taps["logits"] = jnp.matmul(x, kernel, precision="highest")
        return taps

    # Blocks, named after the sides of their feature maps.

    def _block_35(self, x, name, pooled):
        one, five, three, average = self._pointwise(
            x,
            {
                f"{name}.branch1x1": 64,
                f"{name}.branch5x5_1": 48,
                f"{name}.branch3x3dbl_1": 64,
                f"{name}.branch_pool": pooled,
            },
        )
        five = self._conv(five, f"{name}.branch5x5_2", 64, 5, pad=True)
        three = self._conv(three, f"{name}.branch3x3dbl_2", 96, 3, pad=True)
        three = self._conv(three, f"{name}.branch3x3dbl_3", 96, 3, pad=True)
        return jnp.concatenate([one, five, three, average], axis=-1)

    def _to_17(self, x, name):
        one = self._conv(x, f"{name}.branch3x3", 384, 3, stride=2)
        two = self._pointwise(x, {f"{name}.branch3x3dbl_1": 64})[0]
        two = self._conv(two, f"{name}.branch3x3dbl_2", 96, 3, pad=True)
        two = self._conv(two, f"{name}.branch3x3dbl_3", 96, 3, stride=2)
        return jnp.concatenate([one, two, _max_pool(x)], axis=-1)

    def _block_17(self, x, name, width):
        one, seven, double, average = self._pointwise(
            x,
            {
                f"{name}.branch1x1": 192,
                f"{name}.branch7x7_1": width,
                f"{name}.branch7x7dbl_1": width,
                f"{name}.branch_pool": 192,
            },
        )
        for i, size, features in ((2, (1, 7), width), (3, (7, 1), 192)):
            seven = self._conv(seven, f"{name}.branch7x7_{i}", features, size, pad=True)
        for i in (2, 3, 4, 5):
            size, features = ((7, 1), (1, 7))[i % 2], 192 if i == 5 else width
            double = self._conv(
                double, f"{name}.branch7x7dbl_{i}", features, size, pad=True
            )
        return jnp.concatenate([one, seven, double, average], axis=-1)

    def _to_8(self, x, name):
        three, seven = self._pointwise(
            x, {f"{name}.branch3x3_1": 192, f"{name}.branch7x7x3_1": 192}
        )
        three = self._conv(three, f"{name}.branch3x3_2", 320, 3, stride=2)
        seven = self._conv(seven, f"{name}.branch7x7x3_2", 192, (1, 7), pad=True)
        seven = self._conv(seven, f"{name}.branch7x7x3_3", 192, (7, 1), pad=True)
        seven = self._conv(seven, f"{name}.branch7x7x3_4", 192, 3, stride=2)
        return jnp.concatenate([three, seven, _max_pool(x)], axis=-1)

    def _block_8(self, x, name, largest=False):
        widths = {
            f"{name}.branch1x1": 320,
            f"{name}.branch3x3_1": 384,
            f"{name}.branch3x3dbl_1": 448,
        }
        pooled = {f"{name}.branch_pool": 192}
        if largest:
            one, three, double = self._pointwise(x, widths)
            (last,) = self._pointwise(_max_pool(x, stride=1), pooled, average=False)
        else:
            one, three, double, last = self._pointwise(x, widths | pooled)
        double = self._conv(double, f"{name}.branch3x3dbl_2", 384, 3, pad=True)
        parts = [one]
        for x, branch in ((three, "branch3x3_2"), (double, "branch3x3dbl_3")):
            for half, size in (("a", (1, 3)), ("b", (3, 1))):
                layer = f"{name}.{branch}{half}"
                parts.append(self._conv(x, layer, 384, size, pad=True))
        return jnp.concatenate([*parts, last], axis=-1)

    # Layers.

    def _weights(self, name, shape):
        """Kernel and bias of a layer."""
        init = nn.initializers.he_normal()
        weights = self.param(
            name, lambda key: {"kernel": init(key, shape), "bias": jnp.zeros(shape[-1])}
        )
        return (weights[leaf] for leaf in ("kernel", "bias"))

    def _conv(self, x, name, features, size, stride=1, pad=False):
        """Convolution and ReLU; padded to the same size, or not at all."""
        size = (size, size) if isinstance(size, int) else size
        kernel, bias = self._weights(name, (*size, x.shape[-1], features))
        # Without any padding XLA takes up to five times as long on the CPU. So one row
        # and one column of zeros are padded, and their results, if any, cut off.
        padding = [(n // 2, n // 2) if pad else (0, 1) for n in size]
        x = jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision="highest",
        )
        if not pad and stride == 1:
            x = x[:, :-1, :-1]
        return nn.relu(x + bias[None, None, None])

    def _pointwise(self, x, widths, average=True):
        """1x1 convolutions of one input and ReLU; that of *.branch_pool is averaged."""
        layers = [
            self._weights(name, (1, 1, x.shape[-1], width))
            for name, width in widths.items()
        ]
        kernels, biases = zip(*layers, strict=True)
        kernel = jnp.concatenate(kernels, axis=-1).reshape(x.shape[-1], -1)
        rows = x.reshape(-1, x.shape[-1])
        x = jnp.matmul(rows, kernel, precision="highest").reshape(*x.shape[:-1], -1)
        parts = jnp.split(x, np.cumsum([len(bias) for bias in biases])[:-1], axis=-1)
        return [
            nn.relu(
                (_average(part) if average and name.endswith("branch_pool") else part)
                + bias[None, None, None]
            )
            for name, part, bias in zip(widths, parts, biases, strict=True)
        ]


def _mean(x):
    """Global average pooling of maps, [B, h, w, c] -> float32 [B, c]."""
    return jnp.mean(x, axis=(1, 2))


def _max_pool(x, stride=2):
    """Max pooling, 3 x 3; with stride 1 the size stays the same."""
    for axis in (1, 2):
        cells = _cells(x, axis, stride, -jnp.inf if stride == 1 else None)
        x = functools.reduce(jnp.maximum, cells)
    return x


def _average(x):
    """Average pooling, 3 x 3; at the borders only over the cells that exist."""
    for axis in (1, 2):
        counts = np.full(x.shape[axis], 3)
        counts[[0, -1]] = 2
        shape = [1] * x.ndim
        shape[axis] = -1
        x = sum(_cells(x, axis, 1, 0)) * (1 / counts).reshape(shape).astype(np.float32)
    return x


def _cells(x, axis, stride, fill):
    """The first, second and third cells of all windows of three along an axis.

    By slices, as XLA's reduce_window takes four times as long on the CPU.
    """
    if fill is not None:
        padding = [(0, 0)] * x.ndim
        padding[axis] = (1, 1)
        x = jnp.pad(x, padding, constant_values=fill)
    windows = (x.shape[axis] - 3) // stride
    return [
        jax.lax.slice_in_dim(x, i, i + windows * stride + 1, stride, axis)
        for i in range(3)
    ]
