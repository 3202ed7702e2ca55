"""Selects the kernel of an attention from a table, by device and shape.

KERNELS describes what each kernel supports, TABLE when one is used instead of `einsum`.
The field `attention_kernel` of a network sets one for all of its attentions instead.
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
    """The properties of a device that the choice of a kernel depends on.

    Attributes:
      platform: "cpu", "cuda", "tpu", or JAX's name of another.
      capability: Compute capability of a "cuda" device, (major, minor).
      scattered: Whether there are several devices, and the program is traced without
        their mesh.
    """

    platform: str
    capability: tuple[int, int] = (0, 0)
    scattered: bool = False


class Shape(NamedTuple):
    """The shape of an attention.

    Attributes:
      batch: Number of examples.
      heads: Number of heads.
      length: Number of queries.
      source: Number of keys.
      width: Channels of a head.
      dtype: Name of the compute type.
      masked: Whether it has a mask.
    """

    batch: int
    heads: int
    length: int
    source: int
    width: int
    dtype: str
    masked: bool = False

    def __str__(self) -> str:
        """Tokens, heads and their width, for logs."""
        return f"{self.length}x{self.source} {self.heads}x{self.width}"


class Kernel(NamedTuple):
    """An implementation of attention.

    Attributes:
      run: (query, key, value, mask) -> output, as `dot_product_attention`.
      refuses: (Shape, Device) -> why it does not support that, or None if it does.
    """

    run: Callable
    refuses: Callable[[Shape, Device], str | None]


class Row(NamedTuple):
    """When a kernel is selected by AUTO.

    Attributes:
      platform: Platform of the device.
      kernel: Row of KERNELS.
      tokens: Minimum number of queries and of keys.
      width: Maximum channels of a head.
    """

    platform: str
    kernel: str
    tokens: int
    width: int


def this_device() -> Device:
    """Returns the device that the traced program will run on.

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
      shape: Shape of the attention.
      asked: Row of KERNELS, or AUTO to choose by TABLE.
      device: Device; `this_device()` by default.

    Returns:
      Row of KERNELS.

    Raises:
      ConfigError: If `asked` is unknown, or does not support this shape and device.
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
      name: Name from a config.

    Raises:
      ConfigError: If the name is unknown; the message lists the known ones.
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
    del shape, device  # It supports all.


def _cudnn_refuses(shape, device):
    # cuDNN supports 256 channels only on Hopper.
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
    # If a program is planned for another device, there is none to try it on.
    here = jax.default_backend() == "gpu"
    return _cudnn_fails(shape._replace(batch=1)) if here else None


@functools.lru_cache
def _cudnn_fails(shape):
    """Tries to compile it and its gradient; returns cuDNN's error, or None."""

    def total(query, key, value):
        return _cudnn(query, key, value, None).astype(jnp.float32).sum()

    query, key = (
        jax.ShapeDtypeStruct((1, shape.heads, tokens, shape.width), shape.dtype)
        for tokens in (shape.length, shape.source)
    )
    # Independent of the program that is being traced.
    nowhere = jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ()))
    try:
        with nowhere, jax.ensure_compile_time_eval():
            jax.jit(jax.grad(total, (0, 1, 2))).lower(query, key, key).compile()
    except Exception as error:  # Whatever the error, another kernel can be used.
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
    # JAX has no gradient for an odd number of tokens, such as that of a caption. Its
    # call needs the same sharding for all arguments, which with sharded parameters they
    # do not have by default.
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
    """Number of tokens of each row, [B], sharded like the rows."""
    return split_rows(jnp.full((batch,), tokens, jnp.int32))


def _even(rows):
    """[B, tokens, ...] with an additional token of zeros if their number is odd."""
    return jnp.pad(rows, ((0, 0), (0, rows.shape[1] % 2), (0, 0), (0, 0)))


def _flash(query, key, value, mask):
    del mask
    # Importing Pallas takes a second, so only those who use it should pay for it.
    from ldm_jax.models.operations.flash import flash

    return flash(query, key, value)


KERNELS = {
    "einsum": Kernel(attend_in_blocks, _einsum_refuses),
    "cudnn": Kernel(_cudnn, _cudnn_refuses),
    "flash": Kernel(_flash, _flash_refuses),
}

# The first matching row is used. The kernels have not been timed against einsum:
# cuDNN's is used where by count it moves fewer bytes (benchmarks/RESULTS.md) than
# einsum, which in a training step writes and reads some 45 bytes for each pair of
# tokens and head.
TABLE = (Row("cuda", "cudnn", tokens=64, width=256),)
