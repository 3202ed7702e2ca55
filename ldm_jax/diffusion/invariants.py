"""Takes out of a loop what none of its steps changes."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core

# What is worth its memory whatever its size; and how much larger than what it is
# computed from the rest may be, as a context is when it is padded.
_HEAVY = ("dot_general", "conv_general_dilated")
_GROWTH = 1.25


def hoist_invariants(body: Callable, *examples: Any) -> Callable:
    """Computes now what a loop's body would compute anew in each step.

    Compilers for GPUs leave it in the loop: the casts of all weights, and keys and
    values of a context. What costs no product is taken out only if it is not much
    larger than what it is computed from. All of it stays in memory while the loop
    runs, as weights in bfloat16 beside those in float32. Nothing is taken out of what
    the body does in a loop, a branch or a `jax.checkpoint` of its own: hoist their
    functions themselves.

    Args:
      body: Pure function; what it closes over does not change.
      *examples: Arrays of the shapes that it will be called with, in any tree.

    Returns:
      The same function, for these shapes alone.
    """
    if jax.config.jax_disable_jit:
        return body
    closed, shapes = jax.make_jaxpr(body, return_shape=True)(*examples)
    jaxpr = closed.jaxpr
    # A dict, whose keys have an order.
    known, before, after = dict.fromkeys(jaxpr.constvars), [], []
    for eqn in jaxpr.eqns:
        if known.keys() >= set(_variables(eqn.invars)) and _worthwhile(eqn):
            known |= dict.fromkeys(eqn.outvars)
            before.append(eqn)
        else:
            after.append(eqn)
    read = {*_variables(jaxpr.outvars)}.union(*(_variables(e.invars) for e in after))
    kept = [variable for variable in known if variable in read]
    once = _function(jaxpr, jaxpr.constvars, kept, before)
    each = _function(jaxpr, [*kept, *jaxpr.invars], jaxpr.outvars, after)
    values = once(*closed.consts)

    def run(*arguments):
        results = each(*values, *jax.tree.leaves(arguments))
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    return run


def _variables(atoms):
    return [atom for atom in atoms if not isinstance(atom, core.Literal)]


def _worthwhile(eqn):
    if eqn.effects or not _variables(eqn.invars):
        return False
    read, made = (sum(map(_bytes, ends)) for ends in (eqn.invars, eqn.outvars))
    return eqn.primitive.name in _HEAVY or made <= _GROWTH * read


def _bytes(atom):
    return math.prod(atom.aval.shape) * atom.aval.dtype.itemsize


def _function(jaxpr, inputs, outputs, equations):
    """The function of some of a jaxpr's equations."""
    names = jaxpr.debug_info.with_unknown_names()
    part = core.Jaxpr((), inputs, outputs, equations, debug_info=names)
    return core.jaxpr_as_fun(core.ClosedJaxpr(part, ()))
