"""Counts the FLOPs of a traced program: its matrix products and convolutions.

One multiplication and one addition count as two operations, as in data sheets;
elementwise operations do not count, nor do multiplications by the zeros that the
gradient of a strided convolution inserts.  Nothing is compiled.
"""

import math
from collections.abc import Callable
from typing import Any

from jax.extend import core

# The platform whose branch is counted where a program has one per platform.
PLATFORM = "cuda"


def count_flops(jaxpr: Any) -> float:
    """Counts the FLOPs of one execution of a program.

    Args:
      jaxpr: Jaxpr or ClosedJaxpr; a loop counts as often as it runs if the number of
        steps is known, else once; of branches the costliest counts.

    Returns:
      Floating-point operations.
    """
    return sum(map(_of_equation, getattr(jaxpr, "jaxpr", jaxpr).eqns))


def _of_equation(eqn):
    rule = _RULES.get(eqn.primitive.name)
    if rule is not None:
        return rule(eqn)
    return sum(map(count_flops, inner_jaxprs(eqn)))


def inner_jaxprs(eqn: Any) -> list[Any]:
    """Lists the jaxprs inside of an equation, such as a call or a loop.

    Args:
      eqn: Equation of a jaxpr.

    Returns:
      Jaxprs and ClosedJaxprs; if there is one per platform, only that of PLATFORM.
    """
    platforms = eqn.params.get("branches_platforms")
    if platforms:
        # The default branch names no platforms, and is the last.
        ours = [names is None or PLATFORM in names for names in platforms]
        return [eqn.params["branches"][ours.index(True)]]
    found = []
    for value in eqn.params.values():
        values = value if isinstance(value, tuple | list) else (value,)
        found += [v for v in values if isinstance(v, core.Jaxpr | core.ClosedJaxpr)]
    return found


def _dot_general(eqn):
    (contracted, _), _ = eqn.params["dimension_numbers"]
    shape = eqn.invars[0].aval.shape
    terms = math.prod(shape[axis] for axis in contracted)
    return 2 * eqn.outvars[0].aval.size * terms


def _conv(eqn):
    kernel = eqn.invars[1].aval.shape
    _, inputs, *window = eqn.params["dimension_numbers"].rhs_spec
    terms = kernel[inputs] * math.prod(kernel[axis] for axis in window)
    # Between the values of a dilated input there are zeros.
    zeros = math.prod(eqn.params["lhs_dilation"])
    return 2 * eqn.outvars[0].aval.size * terms / zeros


def _scan(eqn):
    return eqn.params["length"] * count_flops(eqn.params["jaxpr"])


def _cond(eqn):
    return max(map(count_flops, inner_jaxprs(eqn)))


def _pallas_call(eqn):
    estimate = eqn.params.get("cost_estimate")
    if estimate is not None:
        return estimate.flops
    grid = math.prod(eqn.params["grid_mapping"].grid)
    return grid * sum(map(count_flops, inner_jaxprs(eqn)))


def _cudnn_attention(products):
    """FLOPs of cuDNN's attention, [B, tokens, heads, d], from its matrix products."""

    def rule(eqn):
        query, key = (var.aval.shape for var in eqn.invars[:2])
        return 2.0 * products * math.prod(query) * key[1]

    return rule


_RULES: dict[str, Callable[[Any], float]] = {
    "dot_general": _dot_general,
    "conv_general_dilated": _conv,
    "scan": _scan,
    "cond": _cond,
    "pallas_call": _pallas_call,
    "dot_product_attention_fwd_wrapper": _cudnn_attention(2),
    # Four for the gradients, and one to recompute the scores.
    "dot_product_attention_bwd_wrapper": _cudnn_attention(5),
}
