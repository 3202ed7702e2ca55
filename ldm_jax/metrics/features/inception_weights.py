"""The row `inception` of FEATURES: weights of FID's Inception-v3, from file or seeded.

pytorch-fid and torch-fidelity publish the same file. Batch normalisation is folded into
the convolutions when it is read, in float64.
"""

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.errors import ConversionError
from ldm_jax.metrics.features.inception import SIZE, WIDTHS, Inception
from ldm_jax.metrics.features.network import FeatureNetwork, Loaded, to_rgb
from ldm_jax.metrics.features.tensorflow_resize import tensorflow_resize
from ldm_jax.metrics.features.weight_files import check_tensors, checksum, read_tensors
from ldm_jax.models.operations.parameters import variable_shapes
from ldm_jax.weights.state_dict import Params, StateDict

WHERE = (
    "FID's Inception-v3 is pt_inception-2015-12-05-6726825d.pth of "
    "github.com/mseitzer/pytorch-fid/releases/tag/fid_weights, or "
    "weights-inception-2015-12-05-6726825d.pth of "
    "github.com/toshas/torch-fidelity/releases/tag/v0.2.0, which is the same"
)
# Epsilon of the batch normalisations, and their tensors.
_EPSILON = 1e-3
_NORM = ("weight", "bias", "running_mean", "running_var")


@functools.cache
def shapes() -> dict[str, tuple[int, ...]]:
    """Lists the tensors of the published file.

    Returns:
      Dict of key -> shape, without the batch counters.
    """
    image = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    params = variable_shapes(Inception(), image)["params"]
    found = {}
    for name, layer in params.items():
        kernel = layer["kernel"].shape
        if name == "fc":
            found |= {"fc.weight": kernel[::-1], "fc.bias": kernel[-1:]}
            continue
        found[f"{name}.conv.weight"] = (*kernel[:1:-1], *kernel[:2])
        found |= {f"{name}.bn.{leaf}": kernel[-1:] for leaf in _NORM}
    return found


def read_inception(path: str) -> StateDict:
    """Reads the published file, or one converted from it.

    Args:
      path: The file.

    Returns:
      Dict of key -> array, without the batch counters.

    Raises:
      ConversionError: If it is missing, unreadable or another network.
    """
    tensors = read_tensors(path, WHERE)
    if any(key.startswith("AuxLogits.") for key in tensors):
        raise ConversionError(
            f"{path} is torchvision's Inception-v3, whose features are others: {WHERE}"
        )
    counters = ".num_batches_tracked"
    tensors = {k: v for k, v in tensors.items() if not k.endswith(counters)}
    check_tensors(path, tensors, shapes(), f"FID's Inception-v3: {WHERE}")
    return {key: np.asarray(tensors[key]) for key in shapes()}


def draw_inception() -> StateDict:
    """Draws random weights, for use without a file; the same on every machine.

    Returns:
      Dict of key -> float32 array, with the keys of `read_inception`.
    """
    return {key: _draw(key, shape) for key, shape in shapes().items()}


def _draw(key, shape):
    """Kernels of variance 2 / inputs (He et al. 2015): all layers have one scale."""
    if len(shape) == 1:
        of_ones = key.endswith(("bn.weight", "running_var"))
        return np.full(shape, float(of_ones), np.float32)
    # Uniform numbers, which are drawn ten times as fast as normal ones. NumPy's policy
    # guarantees this stream.
    draw = np.random.RandomState(zlib.crc32(key.encode())).random_sample(shape)
    return ((2 * draw - 1) * np.sqrt(6 / np.prod(shape[1:]))).astype(np.float32)


def fold_norms(tensors: StateDict) -> Params:
    """Makes the parameters of Inception from the tensors of a published file.

    Args:
      tensors: Dict of key -> array, the result of `read_inception`.

    Returns:
      Parameters of Inception, float32.
    """
    params = {"fc": {"kernel": tensors["fc.weight"].T, "bias": tensors["fc.bias"]}}
    for key in tensors:
        if not key.endswith(".conv.weight"):
            continue
        name = key.removesuffix(".conv.weight")
        kernel, weight, bias, mean, variance = (
            np.float64(tensors[k]) for k in (key, *(f"{name}.bn.{n}" for n in _NORM))
        )
        scale = weight / np.sqrt(variance + _EPSILON)
        params[name] = {
            "kernel": kernel.transpose(2, 3, 1, 0) * scale,
            "bias": bias - mean * scale,
        }
    return jax.tree.map(lambda a: np.ascontiguousarray(a, np.float32), params)


def _load(path):
    tensors = draw_inception() if path is None else read_inception(path)
    return Loaded(fold_norms(tensors), checksum(tensors))


def _apply(prepare, params, images, taps):
    features = Inception().apply({"params": params}, prepare(to_rgb(images)))
    return {tap: features[tap] for tap in taps}


def _as_tensorflow(images):
    return (tensorflow_resize(images, SIZE, SIZE) - 128) / 128


def _as_pytorch_fid(images):
    """Resizes like `F.interpolate` without antialiasing, and to another range."""
    shape = len(images), SIZE, SIZE, images.shape[-1]
    images = jax.image.resize(images / 255, shape, "linear", antialias=False)
    return 2 * images - 1


def _row(title, prepare):
    apply = functools.partial(_apply, prepare)
    return FeatureNetwork(title, WHERE, WIDTHS, _load, apply, convert=read_inception)


INCEPTION = _row("Inception-v3 of FID", _as_tensorflow)
# The same network with other preprocessing, which many papers use.
INCEPTION_PYTORCH_FID = _row(
    "Inception-v3 as pytorch-fid feeds it", _as_pytorch_fid
)._replace(weights_of="inception")
