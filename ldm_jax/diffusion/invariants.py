"""Hoists loop-invariant computations out of a loop's body."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core

# Operations whose results are worth their memory at any size; and by which factor other
# results may be larger than their inputs, as a padded context is.
_HEAVY = ("dot_general", "conv_general_dilated")
_GROWTH = 1.25


def hoist_invariants(body: Callable, *examples: Any) -> Callable:
    """Computes once what a loop's body would recompute in each step.

    Compilers for GPUs leave such computations in the loop: the casts of all weights,
    and keys and values of a context. Operations that are not products are hoisted only
    if their results are not much larger than their inputs. All results stay in memory
    while the loop runs, such as weights in bfloat16 besides those in float32. Nothing
    is hoisted from loops, branches or `jax.checkpoint` within the body: apply this to
    their functions.

    Args:
      body: Pure function; values that it closes over are constant.
      *examples: Pytrees of arrays with the shapes of its arguments.

    Returns:
      The same function, only for arguments of these shapes.
    """
    if jax.config.jax_disable_jit:
        return body
    closed, shapes = jax.make_jaxpr(body, return_shape=True)(*examples)
    jaxpr = closed.jaxpr
    # A dict serves as an ordered set.
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
    """Makes a function from some of a jaxpr's equations."""
    names = jaxpr.debug_info.with_unknown_names()
    part = core.Jaxpr((), inputs, outputs, equations, debug_info=names)
    return core.jaxpr_as_fun(core.ClosedJaxpr(part, ()))
