"""Which kernel computes an attention: a table by device and shape.

KERNELS has what each kernel can do, TABLE where one is taken in place of `einsum`.  A
network's field `attention_kernel` names one for all of its attentions instead.
"""

import functools
import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ldm_jax.errors import ConfigError
from ldm_jax.models.operations.attend import attend_in_blocks
from ldm_jax.models.operations.rows import is_scattered, split_rows

AUTO = "auto"


class Device(NamedTuple):
    """What kernels need.

    Attributes:
      platform: "cpu", "cuda", "tpu", or as JAX names another.
      capability: Compute capability of a "cuda" device, (major, minor).
      scattered: Whether there are several, and the program is traced without the mesh
        that they form.
    """

    platform: str
    capability: tuple[int, int] = (0, 0)
    scattered: bool = False


class Shape(NamedTuple):
    """An attention.

    Attributes:
      batch: Examples.
      heads: Heads.
      length: Tokens that attend.
      source: Tokens that are attended to.
      width: Channels of a head.
      dtype: Name of the compute type.
      masked: Whether a mask says who attends to whom.
    """

    batch: int
    heads: int
    length: int
    source: int
    width: int
    dtype: str
    masked: bool = False

    def __str__(self) -> str:
        """Tokens, heads and their width, as logs have them."""
        return f"{self.length}x{self.source} {self.heads}x{self.width}"


class Kernel(NamedTuple):
    """A way to compute attention.

    Attributes:
      run: (query, key, value, mask) -> output, as `dot_product_attention`.
      refuses: (Shape, Device) -> why it cannot compute that there, or None.
    """

    run: Callable
    refuses: Callable[[Shape, Device], str | None]


class Row(NamedTuple):
    """Where a kernel is taken that nobody has asked for.

    Attributes:
      platform: Of the device.
      kernel: Row of KERNELS.
      tokens: Fewest on either side.
      width: Most channels of a head.
    """

    platform: str
    kernel: str
    tokens: int
    width: int


def this_device() -> Device:
    """Says what the program that is traced will run on.

    Returns:
      Device of JAX's default backend.
    """
    device = jax.devices()[0]
    scattered = is_scattered()
    found = re.fullmatch(r"(\d+)\.(\d+)", getattr(device, "compute_capability", ""))
    if found:
        return Device("cuda", (int(found[1]), int(found[2])), scattered)
    return Device(device.platform, scattered=scattered)


def choose(shape: Shape, asked: str = AUTO, device: Device | None = None) -> str:
    """Chooses the kernel of an attention.

    Args:
      shape: Shape.
      asked: Row of KERNELS, or AUTO for what TABLE says.
      device: Device; `this_device()` by default.

    Returns:
      Row of KERNELS.

    Raises:
      ConfigError: If what is asked for is unknown, or cannot compute this here.
    """
    check_kernel(asked)
    device = device or this_device()
    if asked == AUTO:
        fitting = (row.kernel for row in TABLE if _takes(row, shape, device))
        return next(fitting, "einsum")
    reason = KERNELS[asked].refuses(shape, device)
    if reason:
        able = (name for name, k in KERNELS.items() if not k.refuses(shape, device))
        raise ConfigError(
            f"attention_kernel={asked} cannot compute an attention of {shape.length} "
            f"to {shape.source} tokens with {shape.heads} heads of {shape.width} "
            f"channels in {shape.dtype} here: {reason}; set it to {AUTO}, which "
            f"takes one that can ({', '.join(able)})"
        )
    return asked


def check_kernel(name: str) -> None:
    """Checks the name of a kernel.

    Args:
      name: What a config has.

    Raises:
      ConfigError: If there is none of this name; the message lists them.
    """
    if name != AUTO and name not in KERNELS:
        raise ConfigError(
            f"unknown attention_kernel {name!r}: choose one of "
            f"{', '.join((AUTO, *KERNELS))}"
        )


def _takes(row, shape, device):
    return (
        row.platform == device.platform
        and min(shape.length, shape.source) >= row.tokens
        and shape.width <= row.width
        and not KERNELS[row.kernel].refuses(shape, device)
    )


def _einsum_refuses(shape, device):
    del shape, device  # It is for all.


def _cudnn_refuses(shape, device):
    # NVIDIA has 256 channels for Hopper alone.
    widest = 256 if device.capability[0] == 9 else 128
    if device.platform != "cuda":
        return f"it is for NVIDIA's GPUs, and this is a {device.platform}"
    if device.capability < (8, 0):
        return "it is for GPUs of compute capability 8.0 and later"
    if shape.dtype not in ("bfloat16", "float16"):
        return f"it takes dtype bfloat16 and float16, not {shape.dtype}"
    if shape.width > widest or shape.width % 8:
        return f"it takes heads of a multiple of 8 channels, {widest} at most"
    if shape.masked:
        return "it takes no mask"
    # Where a program is planned for another device, there is nothing to try it on.
    here = jax.default_backend() == "gpu"
    return _cudnn_fails(shape._replace(batch=1)) if here else None


@functools.lru_cache
def _cudnn_fails(shape):
    """Compiles one and its gradient; says why cuDNN cannot, which no table knows."""

    def total(query, key, value):
        return _cudnn(query, key, value, None).astype(jnp.float32).sum()

    query, key = (
        jax.ShapeDtypeStruct((1, shape.heads, tokens, shape.width), shape.dtype)
        for tokens in (shape.length, shape.source)
    )
    # Nothing of the program that is being traced is of it.
    nowhere = jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ()))
    try:
        with nowhere, jax.ensure_compile_time_eval():
            jax.jit(jax.grad(total, (0, 1, 2))).lower(query, key, key).compile()
    except Exception as error:  # Whatever it is, another kernel computes the same.
        lines = str(error).splitlines() or [type(error).__name__]
        return f"cuDNN cannot ({lines[0]})"
    return None


def _flash_refuses(shape, device):
    if device.platform != "tpu":
        return f"it is for TPUs, and this is a {device.platform}"
    if shape.dtype not in ("bfloat16", "float32"):
        return f"it takes dtype bfloat16 and float32, not {shape.dtype}"
    if device.scattered:
        return "this program is traced without the mesh of its devices"
    return "it takes no mask" if shape.masked else None


def _cudnn(query, key, value, mask):
    del mask
    length, source = query.shape[2], key.shape[2]
    # JAX refuses gradients where a number of tokens is odd, as that of a caption.
    # Its call wants all of them split alike, which where parameters are split they are
    # not of themselves.
    query, key, value = (
        split_rows(_even(x.swapaxes(1, 2))) for x in (query, key, value)
    )
    lengths = {}
    if source % 2:
        lengths = {
            "query_seq_lengths": _lengths(len(query), query.shape[1]),
            "key_value_seq_lengths": _lengths(len(key), source),
        }
    out = jax.nn.dot_product_attention(
        query, key, value, **lengths, implementation="cudnn"
    )
    return split_rows(out)[:, :length].swapaxes(1, 2)


def _lengths(batch, tokens):
    """[B], split as rows are: each device's call wants those of its own."""
    return split_rows(jnp.full((batch,), tokens, jnp.int32))


def _even(rows):
    """[B, tokens, ...] with a token of zeros more where their number is odd."""
    return jnp.pad(rows, ((0, 0), (0, rows.shape[1] % 2), (0, 0), (0, 0)))


def _flash(query, key, value, mask):
    del mask
    # Pallas takes a second to import, which nobody else shall wait for.
    from ldm_jax.models.operations.flash import flash

    return flash(query, key, value)


KERNELS = {
    "einsum": Kernel(attend_in_blocks, _einsum_refuses),
    "cudnn": Kernel(_cudnn, _cudnn_refuses),
    "flash": Kernel(_flash, _flash_refuses),
}

# The first row that fits. Einsum has not been timed beside it: cuDNN's is where it was
# counted to move less (benchmarks/RESULTS.md) than einsum, which in a training step
# writes and reads some 45 bytes for each pair of tokens and head.
TABLE = (Row("cuda", "cudnn", tokens=64, width=256),)
