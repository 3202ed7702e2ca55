"""Parameters: how they start, and flax's layers with them, quick to trace."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
from flax import linen as nn

from ldm_jax.annotations import Array, Float

Initializer = jax.nn.initializers.Initializer

# How weights start: with variance 1 / fan_in in all networks but denoisers, which learn
# faster at first from a third of it, PyTorch's default. (Autoencoders stay at grey
# images several times as long from that.) Measured: see benchmarks/RESULTS.md.
# Jitted, they are traced once for all weights of one shape.
_traced_once = functools.partial(jax.jit, static_argnums=(1, 2))
kernel_init = _traced_once(nn.initializers.lecun_normal())
denoiser_init = _traced_once(
    nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
)


@nn.nowrap
def param(
    module: nn.Module, name: str, init: Initializer, shape: Sequence[int], *rest: Any
) -> Float[Array, "..."]:
    """A parameter, as `nn.Module.param` has it; quicker where it is there.

    That traces how the parameter would start to learn its shape, each time it is used:
    a fifth of what it takes to trace a network.

    Args:
      module: Module that has it.
      name: Its name.
      init: How it starts.
      shape: Its shape.
      *rest: Further arguments of `init`.

    Returns:
      The parameter.

    Raises:
      flax.errors.ScopeParamShapeError: If it is there in another shape.
    """
    if module.has_variable("params", name):
        value = module.get_variable("params", name)
        if getattr(value, "shape", None) == tuple(shape):
            return value
    return nn.Module.param(module, name, init, shape, *rest)


class Dense(nn.Dense):
    """nn.Dense, traced quickly."""

    param = param


class Conv(nn.Conv):
    """nn.Conv, traced quickly."""

    param = param


class Embed(nn.Embed):
    """nn.Embed, traced quickly."""

    param = param
