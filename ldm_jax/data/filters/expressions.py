"""Filters: conditions on columns, e.g. `aesthetic > 5 and language in ("en", "de")`.

They have the syntax of Python and are parsed as such, but never executed: anything that
is not listed here is rejected. There are comparisons, also chained ones, `and`, `or`,
`not`, `in`, `not in`, `is None`, `is not None`, `+ - * / %`, brackets, numbers, text,
`True`, `False`, `None`, `len(text)` and `lower(text)`. Names are those of columns;
`exif.width` is a nested field.
"""

import ast
from collections.abc import Mapping

import numpy as np

from ldm_jax.annotations import Bool, Shaped
from ldm_jax.data.filters import values
from ldm_jax.data.filters.values import Value

# Maximum number of characters of a filter, and of nested brackets.
_MOST, _DEPTH = 10_000, 100

_COMPARISONS = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
}
_ARITHMETIC = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Mod: "%"}
_FUNCTIONS = {"len": values.length, "lower": values.lower}


class Filter:
    """A condition on columns.

    Attributes:
      text: The condition as text.
      names: Names of the columns that it needs, sorted.
    """

    def __init__(self, text: str) -> None:
        """Parses a condition.

        Args:
          text: See the module's docstring.

        Raises:
          ValueError: If it cannot be parsed, or has syntax that filters do not support.
        """
        self.text = text
        if len(text) > _MOST:
            raise ValueError(f"it has {len(text):,} characters, and at most {_MOST:,}")
        try:
            self._tree = ast.parse(text.strip(), mode="eval").body
        except SyntaxError as error:
            at = f" at character {error.offset}" if error.offset else ""
            raise ValueError(f"it cannot be read{at}: {error.msg}") from error
        except (ValueError, MemoryError, RecursionError) as error:
            raise ValueError(f"it cannot be read: {error}") from error
        self.names = tuple(sorted(_find_names(self._tree, 0)))

    def __call__(
        self, columns: Mapping[str, Shaped[np.ndarray, " N"]], count: int
    ) -> Bool[np.ndarray, " N"]:
        """Finds the examples that satisfy the condition.

        Args:
          columns: Name -> column [N], of all `names`.
          count: Number N of examples.

        Returns:
          bool [N].

        Raises:
          ValueError: If a column has a type that the condition does not support.
        """
        found = values.truth_of(_evaluate(self._tree, columns))
        return np.array(np.broadcast_to(found, (count,)))


def _find_names(node, depth):
    """Names of columns in a part of a filter; raises if its syntax is unsupported."""
    if depth > _DEPTH:
        raise ValueError(f"it has more than {_DEPTH} brackets in brackets")
    name = _column(node)
    if name is not None:
        return {name}
    found = set()
    for part in _parts(node):
        found |= _find_names(part, depth + 1)
    return found


def _column(node):
    """The name of the column that a node is, or None."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        outer = _column(node.value)
        return None if outer is None else f"{outer}.{node.attr}"
    return None


def _parts(node):
    """The children of a node; raises if filters do not support the node."""
    match node:
        case ast.Constant():
            values.of_constant(node.value, _shown(node))
            return []
        case ast.BoolOp():
            return node.values
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.UAdd()):
            return [node.operand]
        case ast.BinOp() if type(node.op) in _ARITHMETIC:
            return [node.left, node.right]
        case ast.Compare():
            return [node.left, *node.comparators]
        case ast.List() | ast.Tuple() | ast.Set():
            return node.elts
        case ast.Call(func=ast.Name(id=name), args=[inner], keywords=[]) if (
            name in _FUNCTIONS
        ):
            return [inner]
    raise ValueError(
        f"{_shown(node)} is not for filters: write comparisons of columns with and, "
        f"or, not, in, + - * / %, {', '.join(f'{name}(x)' for name in _FUNCTIONS)}"
    )


def _shown(node):
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 40 else f"{text[:37]}..."


def _evaluate(node, columns):
    """Evaluates a part of a filter whose nodes were all checked by `_parts`."""
    name = _column(node)
    if name is not None:
        return values.of_column(name, columns[name])
    if isinstance(node, ast.Constant):
        return values.of_constant(node.value, _shown(node))
    if isinstance(node, ast.Compare):
        return _chain(node, columns)
    parts = [_evaluate(part, columns) for part in _parts(node)]
    match node:
        case ast.BoolOp():
            return values.combine(
                "and" if isinstance(node.op, ast.And) else "or", parts
            )
        case ast.UnaryOp(op=ast.Not()):
            return values.negate(parts[0])
        case ast.UnaryOp():
            sign = "-" if isinstance(node.op, ast.USub) else "+"
            zero = values.of_constant(0, "0")
            found = values.calculate(sign, zero, parts[0])
            return found._replace(name=_shown(node))
        case ast.BinOp():
            found = values.calculate(_ARITHMETIC[type(node.op)], *parts)
            return found._replace(name=_shown(node))
        case ast.Call():
            return _FUNCTIONS[node.func.id](parts[0])
    return Value("list", parts, np.False_, _shown(node))


def _chain(node, columns):
    """`a < b < c` is `a < b and b < c`."""
    sides = [_evaluate(side, columns) for side in (node.left, *node.comparators)]
    links = [
        _link(op, left, right)
        for op, left, right in zip(node.ops, sides, sides[1:], strict=False)
    ]
    return links[0] if len(links) == 1 else values.combine("and", links)


def _link(op, left, right):
    if type(op) in _COMPARISONS:
        return values.compare(_COMPARISONS[type(op)], left, right)
    if isinstance(op, ast.In | ast.NotIn):
        return values.contains(left, right, isinstance(op, ast.NotIn))
    negated = isinstance(op, ast.IsNot)
    name = f"{left.name} {'is not' if negated else 'is'} {right.name}"
    if right.kind != "none" or right.data is not None:
        raise ValueError(f'{name}: "is" is for None; write {left.name} == {right.name}')
    return values.is_none(left, negated, name)
