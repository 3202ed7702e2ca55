"""A traced program as one list of steps: calls inlined, unused steps removed."""

from typing import Any, NamedTuple

from jax.extend import core

from ldm_jax.flops import inner_jaxprs

# Loops, branches and kernels, which stay steps and are not inlined.
CONTROL = ("scan", "while", "cond", "pallas_call")


class Step(NamedTuple):
    """One operation.

    Attributes:
      name: Name of the primitive.
      inputs: Numbers of the values that it reads.
      outputs: Numbers of the values that it makes.
      eqn: The equation, for its parameters.
    """

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    eqn: Any


class Program(NamedTuple):
    """A program as a list of steps.

    Attributes:
      avals: Shape and type of each value by its number.
      arguments: Numbers of its arguments.
      results: Numbers of its results; None for a constant.
      steps: The steps in order.
    """

    avals: list[Any]
    arguments: list[int]
    results: list[int | None]
    steps: list[Step]


def flatten(jaxpr: Any) -> Program:
    """Lists the steps of a traced program.

    Args:
      jaxpr: Jaxpr or ClosedJaxpr.

    Returns:
      Program.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    avals, steps = [], []

    def new(var):
        avals.append(var.aval)
        return len(avals) - 1

    names = {var: new(var) for var in (*jaxpr.constvars, *jaxpr.invars)}
    arguments = list(names.values())
    results = _inline(jaxpr, names, new, steps)
    return _without_unused(Program(avals, arguments, results, steps))


def _inline(jaxpr, names, new, steps):
    """Adds the steps of a jaxpr with numbered arguments; returns numbers of results."""

    def number(atom):
        return None if isinstance(atom, core.Literal) else names[atom]

    for eqn in jaxpr.eqns:
        inputs = [number(atom) for atom in eqn.invars]
        body = _called(eqn)
        if body is None:
            names |= {var: new(var) for var in eqn.outvars}
            read = tuple(i for i in inputs if i is not None)
            made = tuple(names[var] for var in eqn.outvars)
            steps.append(Step(eqn.primitive.name, read, made, eqn))
            continue
        # A call; constants of its body are new values, like arguments.
        own = {var: new(var) for var in body.constvars}
        # The first argument of a branch is its index.
        given = inputs[1:] if _by_platform(eqn) else inputs
        for var, value in zip(body.invars, given, strict=True):
            own[var] = new(var) if value is None else value
        made = _inline(body, own, new, steps)
        for var, value in zip(eqn.outvars, made, strict=True):
            names[var] = new(var) if value is None else value
    return [number(atom) for atom in jaxpr.outvars]


def _called(eqn):
    """The jaxpr to inline in place of an equation, or None if it is a step."""
    inner = inner_jaxprs(eqn)
    if not inner or (eqn.primitive.name in CONTROL and not _by_platform(eqn)):
        return None
    body = getattr(inner[0], "jaxpr", inner[0])
    given = len(eqn.invars) - _by_platform(eqn)
    same = len(body.invars) == given and len(body.outvars) == len(eqn.outvars)
    return body if same and not eqn.primitive.name.startswith("reduce") else None


def _by_platform(eqn):
    return bool(eqn.params.get("branches_platforms"))


def _without_unused(program: Program) -> Program:
    needed = {value for value in program.results if value is not None}
    kept = []
    for step in reversed(program.steps):
        if needed.isdisjoint(step.outputs):
            continue
        needed.update(step.inputs)
        kept.append(step)
    return program._replace(steps=kept[::-1])
