"""Parameters: how they start, and flax's layers with them, quick to trace."""

import contextlib
import contextvars
import functools
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from ldm_jax import draws
from ldm_jax.annotations import Array, Float, Int, Key
from ldm_jax.models.operations.convolution import conv_general_dilated
from ldm_jax.models.operations.rows import split_rows

Initializer = jax.nn.initializers.Initializer

# How weights start: with variance 1 / fan_in in all networks but denoisers, which learn
# faster at first from a third of it, PyTorch's default. (Autoencoders stay at grey
# images several times as long from that.) Measured: see benchmarks/RESULTS.md.
# Jitted, they are traced once for all weights of one shape.
_traced_once = functools.partial(jax.jit, static_argnums=(1, 2))
kernel_init = _traced_once(draws.kernels(nn.initializers.lecun_normal()))
denoiser_init = _traced_once(
    draws.kernels(nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"))
)

# What needs no random numbers.
_CONSTANT = (nn.initializers.zeros, nn.initializers.ones)

# Path of a parameter -> (init, shape, *rest), while `initialise` asks for them.
_asked = contextvars.ContextVar("asked", default=None)


def variable_shapes(module: nn.Module, *args: Any) -> dict[str, Any]:
    """Finds the shapes of a module's variables; nothing is drawn.

    Args:
      module: Module.
      *args: What it is called with; only shapes and types matter.

    Returns:
      Variables, as `module.init` returns them, of ShapeDtypeStructs.
    """
    return initialise(module, None, *args)[1]


def initialise(
    module: nn.Module, rng: Key[Array, ""] | None, *args: Any
) -> tuple[Any, dict[str, Any]]:
    """Draws the variables of a module, as `init_with_output` does; quick to compile.

    A call of the module tells its parameters, but only their draws are computed. Those
    of one shape that start alike are drawn in one loop, each from a key of its own, so
    that there are some tens of draws to compile and not some hundreds.

    Args:
      module: Module, whose parameters are made by `param`; others are drawn by flax.
      rng: Typed key; None draws nothing.
      *args: What it is called with; only shapes and types matter.

    Returns:
      (what the call returns, of ShapeDtypeStructs; variables, likewise without `rng`).
    """
    leaves, tree = jax.tree.flatten(jax.eval_shape(lambda *args: args, *args))
    try:
        hash(module)
        ask = _ask
    except TypeError:
        # A field is a list, as JSON has it.
        ask = _ask.__wrapped__
    output, shapes, asked = ask(module, tuple(leaves), tree)
    if rng is None:
        # Copied, as whoever asks next is given the same.
        return jax.tree.map(lambda leaf: leaf, (output, shapes))
    params, variables = _draw(rng, asked), {}
    if len(params) < len(flatten_dict(shapes)):
        zeros = [jnp.zeros(leaf.shape, leaf.dtype) for leaf in leaves]
        with _asking({}):
            variables = module.init(rng, *tree.unflatten(zeros))
        params = flatten_dict(variables.get("params", {})) | params
    if params:
        variables = {**variables, "params": unflatten_dict(params)}
    return output, variables


@contextlib.contextmanager
def _asking(asked):
    """Has `param` write down what it is asked for, in place of drawing it."""
    token = _asked.set(asked)
    try:
        yield asked
    finally:
        _asked.reset(token)


@functools.lru_cache(maxsize=64)
def _ask(module, leaves, tree):
    """(shapes of a call's output, those of all variables, what parameters start as).

    A run asks twice: for the shapes of its state, and to draw it.
    """
    init, key = module.init_with_output, jax.random.key(0)
    with _asking({}) as asked:
        output, shapes = jax.eval_shape(init, key, *tree.unflatten(leaves))
    return output, shapes, asked


def _draw(rng, asked):
    """Path -> value of the parameters that were asked for."""
    drawn = {
        path: init(None, *rest)
        for path, (init, *rest) in asked.items()
        if init in _CONSTANT
    }
    random = [path for path in asked if path not in drawn]
    keys, alike = jax.random.split(rng, len(random)), defaultdict(dict)
    for index, path in enumerate(random):
        alike[asked[path]][path] = index
    for (init, *rest), indices in alike.items():
        # A loop compiles faster than one operation for all, and needs less memory.
        values = jax.lax.map(
            lambda key, init=init, rest=rest: init(key, *rest),
            keys[np.array([*indices.values()])],
        )
        drawn |= dict(zip(indices, values, strict=True))
    return drawn


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
    elif (asked := _asked.get()) is not None:
        asked[*module.scope.path, name] = (init, tuple(shape), *rest)
        # A variable asks for no key, which flax computes anew for each parameter.
        start = functools.partial(jax.lax.full, tuple(shape), 0.0, *rest)
        return nn.Module.variable(module, "params", name, start).value
    return nn.Module.param(module, name, init, shape, *rest)


class Dense(nn.Dense):
    """nn.Dense, traced quickly."""

    param = param


class Conv(nn.Conv):
    """nn.Conv, traced quickly, by our convolution."""

    conv_general_dilated: Callable = conv_general_dilated
    param = param


class Embed(nn.Embed):
    """nn.Embed, traced quickly, of rows that stay on their devices."""

    param = param

    def __call__(self, inputs: Int[Array, "batch ..."]) -> Float[Array, "batch ... c"]:
        """Looks up.

        Args:
          inputs: [B, ...], rows of the table.

        Returns:
          [B, ..., c].
        """
        # A table that is split by channels would pass that on to what comes of it.
        return split_rows(super().__call__(inputs))
