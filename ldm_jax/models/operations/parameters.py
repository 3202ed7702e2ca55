"""Initialisation of parameters, and flax's layers in a form that traces quickly."""

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

# Initialisers of weights: variance 1 / fan_in in all networks except denoisers, which
# at first learn faster with a third of it, PyTorch's default. (With that, autoencoders
# output grey images for several times as long.) Measured: see benchmarks/RESULTS.md.
# Jitted, so that they are traced once for all weights of one shape.
_traced_once = functools.partial(jax.jit, static_argnums=(1, 2))
kernel_init = _traced_once(draws.kernels(nn.initializers.lecun_normal()))
denoiser_init = _traced_once(
    draws.kernels(nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"))
)

# Initialisers that need no random numbers.
_CONSTANT = (nn.initializers.zeros, nn.initializers.ones)

# Path of a parameter -> (init, shape, *rest), while `initialise` collects them.
_asked = contextvars.ContextVar("asked", default=None)


def variable_shapes(module: nn.Module, *args: Any) -> dict[str, Any]:
    """Returns the shapes of a module's variables without initialising them.

    Args:
      module: Module.
      *args: Arguments of its call; only shapes and types matter.

    Returns:
      Variables like those of `module.init`, as ShapeDtypeStructs.
    """
    return initialise(module, None, *args)[1]


def initialise(
    module: nn.Module, rng: Key[Array, ""] | None, *args: Any
) -> tuple[Any, dict[str, Any]]:
    """Initialises the variables of a module like `init_with_output`, but compiles fast.

    The module's call is only traced, to collect its parameters. Parameters with the
    same shape and initialiser are drawn in one loop, each with its own key, so that
    some tens of draws are compiled instead of some hundreds.

    Args:
      module: Module; parameters not made by `param` are initialised by flax.
      rng: Typed key; None to compute only shapes and types.
      *args: Arguments of its call; only shapes and types matter.

    Returns:
      (output of the call as ShapeDtypeStructs; variables, without `rng` likewise).
    """
    leaves, tree = jax.tree.flatten(jax.eval_shape(lambda *args: args, *args))
    try:
        hash(module)
        ask = _ask
    except TypeError:
        # A field is a list, as from JSON, and thus not hashable.
        ask = _ask.__wrapped__
    output, shapes, asked = ask(module, tuple(leaves), tree)
    if rng is None:
        # Copied, as the cached result is returned again.
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
    """Makes `param` record the requested parameters instead of drawing them."""
    token = _asked.set(asked)
    try:
        yield asked
    finally:
        _asked.reset(token)


@functools.lru_cache(maxsize=64)
def _ask(module, leaves, tree):
    """(shapes of a call's output, shapes of all variables, recorded parameters).

    Cached, as a run needs it twice: for the shapes of its state, and to initialise it.
    """
    init, key = module.init_with_output, jax.random.key(0)
    with _asking({}) as asked:
        output, shapes = jax.eval_shape(init, key, *tree.unflatten(leaves))
    return output, shapes, asked


def _draw(rng, asked):
    """Path -> value of the recorded parameters."""
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
    """Returns a parameter like `nn.Module.param`, but faster if it exists.

    Flax's traces the initialiser at each use to check the shape: a fifth of the time to
    trace a network.

    Args:
      module: Module of the parameter.
      name: Its name.
      init: Its initialiser.
      shape: Its shape.
      *rest: Further arguments of `init`.

    Returns:
      The parameter.

    Raises:
      flax.errors.ScopeParamShapeError: If it exists with another shape.
    """
    if module.has_variable("params", name):
        value = module.get_variable("params", name)
        if getattr(value, "shape", None) == tuple(shape):
            return value
    elif (asked := _asked.get()) is not None:
        asked[*module.scope.path, name] = (init, tuple(shape), *rest)
        # A variable needs no key; flax computes a new one for each parameter.
        start = functools.partial(jax.lax.full, tuple(shape), 0.0, *rest)
        return nn.Module.variable(module, "params", name, start).value
    return nn.Module.param(module, name, init, shape, *rest)


class Dense(nn.Dense):
    """nn.Dense that traces quickly."""

    param = param


class Conv(nn.Conv):
    """nn.Conv that traces quickly, with our convolution."""

    conv_general_dilated: Callable = conv_general_dilated
    param = param


class Embed(nn.Embed):
    """nn.Embed that traces quickly, whose output is split along the batch."""

    param = param

    def __call__(self, inputs: Int[Array, "batch ..."]) -> Float[Array, "batch ... c"]:
        """Looks up embeddings.

        Args:
          inputs: [B, ...], indices of rows of the table.

        Returns:
          [B, ..., c].
        """
        # With a table that is split by channels, XLA would split the output likewise.
        return split_rows(super().__call__(inputs))
