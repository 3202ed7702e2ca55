"""What every public function, method and class says of itself.

Run `python -m tests.test_docstrings [ROOM ...]` for a list of what is missing.
"""

import ast
import collections
import pathlib
import re
import sys
from typing import NamedTuple

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "ldm_jax"
MOST_PARAMETERS = 8

# Annotations that hold an array, and those that give its shape.
ARRAY = re.compile(r"\b(Array|ndarray)\b")
SHAPED = re.compile(r"\b(Bool|Float|Int|Integer|Key|Num|Shaped|UInt8)\[")
# A docstring that says a shape: "[B, h, w, c]", "a scalar", "shaped like `x`".
SAYS_SHAPE = re.compile(r"\[[^\[\]]*\]|\bscalars?\b|\bshaped?\b")
HEADINGS = "Args|Attributes|Raises|Returns|Yields"
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class Violation(NamedTuple):
    """Something that a definition does not say."""

    room: str
    path: str
    line: int
    name: str
    what: str

    def __str__(self):
        return f"{self.path}:{self.line} {self.name}: {self.what}"


def _sections(docstring):
    """Heading -> text of a docstring in the style of this code base."""
    parts = re.split(rf"^({HEADINGS}):\s*$", docstring, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _names(section):
    """The names that a section explains: "  name: ..." or "  one, other: ..."."""
    names = set()
    for line in section.splitlines():
        entry = re.match(r"^  (\*{0,2}\w+(?:, \*{0,2}\w+)*):(\s|$)", line)
        if entry:
            names |= {name.lstrip("*") for name in entry.group(1).split(", ")}
    return names


def _own_nodes(function):
    """Nodes of a function without those of functions and classes within it."""
    queue = list(function.body)
    while queue:
        node = queue.pop()
        yield node
        if not isinstance(node, (*FUNCTIONS, ast.Lambda, ast.ClassDef)):
            queue.extend(ast.iter_child_nodes(node))


def _gives(function):
    """The heading for what a function gives: "Returns", "Yields" or None."""
    for node in _own_nodes(function):
        if isinstance(node, ast.YieldFrom | ast.Yield) and node.value is not None:
            return "Yields"
    for node in _own_nodes(function):
        if isinstance(node, ast.Return) and node.value is not None:
            if not (isinstance(node.value, ast.Constant) and node.value.value is None):
                return "Returns"
    return None


def _raised(nodes):
    """Names of the errors that nodes raise, but for those that a `try` may catch."""
    for node in nodes:
        if isinstance(node, (*FUNCTIONS, ast.Lambda, ast.ClassDef)):
            continue
        if isinstance(node, ast.Raise) and node.exc is not None:
            # A function or a variable that gives the error begins in lower case.
            error = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            name = ast.unparse(error).split(".")[-1]
            if name[0].isupper():
                yield name
        inner = ast.iter_child_nodes(node)
        if isinstance(node, ast.Try):
            inner = [*node.handlers, *node.orelse, *node.finalbody]
        yield from _raised(inner)


def _decorators(function):
    return {ast.unparse(node).split(".")[-1] for node in function.decorator_list}


def _parameters(function, method):
    """The arguments of a function, without `self` and `cls`."""
    given = function.args
    arguments = [*given.posonlyargs, *given.args]
    if method and "staticmethod" not in _decorators(function):
        arguments = arguments[1:]
    arguments += given.kwonlyargs
    return arguments + [a for a in (given.vararg, given.kwarg) if a is not None]


def _check_signature(function, parameters):
    """Yields what is wrong with a signature."""
    if len(parameters) > MOST_PARAMETERS:
        yield f"{len(parameters)} parameters, more than {MOST_PARAMETERS}"
    missing = [a.arg for a in parameters if a.annotation is None]
    if missing:
        yield f"not annotated: {', '.join(missing)}"
    if function.returns is None:
        yield "the return is not annotated"
    annotations = {a.arg: a.annotation for a in parameters if a.annotation is not None}
    if function.returns is not None:
        annotations["the return"] = function.returns
    for name, annotation in annotations.items():
        text = ast.unparse(annotation)
        if ARRAY.search(text) and not SHAPED.search(text):
            yield f"an array without a shape: {name}"


def _check_function(function, method):
    """Yields what is missing of a public function or method."""
    parameters = _parameters(function, method)
    yield from _check_signature(function, parameters)
    docstring = ast.get_docstring(function)
    if docstring is None:
        yield "no docstring"
        return
    sections = _sections(docstring)
    explained = _names(sections.get("Args", ""))
    missing = [a.arg for a in parameters if a.arg not in explained]
    missing = [name for name in missing if not name.startswith("_")]
    if missing:
        yield f"Args lacks: {', '.join(missing)}"
    gives = _gives(function)
    is_property = _decorators(function) & {"property", "cached_property"}
    if gives and not is_property and not {gives, "Yields"} & sections.keys():
        yield f"no {gives}"
    said = sections.get("Raises", "")
    for name in sorted(set(_raised(function.body))):
        if not re.search(rf"\b{name}\b", said):
            yield f"Raises lacks: {name}"
    annotations = [a.annotation for a in parameters] + [function.returns]
    text = " ".join(ast.unparse(node) for node in annotations if node is not None)
    if SHAPED.search(text) and not SAYS_SHAPE.search(docstring):
        yield "the docstring says no shape"


def _fields(node):
    """Names of the fields that a class body declares."""
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(
            statement.target, ast.Name
        ):
            if "ClassVar" not in ast.unparse(statement.annotation):
                yield statement.target.id


def _check_class(node, documented, is_module):
    """Yields what is missing of a public class, its methods aside."""
    docstring = ast.get_docstring(node)
    if docstring is None:
        yield "no docstring"
        return
    if is_module:
        missing = [name for name in _fields(node) if name not in documented]
        if missing:
            yield f"Attributes lacks: {', '.join(missing)}"
    for method in node.body:
        if isinstance(method, FUNCTIONS) and method.name == "__init__":
            parameters = _parameters(method, True)
            yield from _check_signature(method, parameters)
            sections = _sections(docstring)
            sections |= _sections(ast.get_docstring(method) or "")
            explained = _names("".join(sections.values()))
            missing = [a.arg for a in parameters if a.arg not in explained]
            if missing:
                yield f"Args lacks: {', '.join(missing)}"


def _check_private_class(node):
    """Yields (name, line, what is missing) of a private class and what it offers."""
    if ast.get_docstring(node) is None:
        yield node.name, node.lineno, "no docstring"
    for inner in node.body:
        if isinstance(inner, FUNCTIONS) and not inner.name.startswith("_"):
            if ast.get_docstring(inner) is None:
                yield f"{node.name}.{inner.name}", inner.lineno, "no docstring"


def _definitions(body, prefix=""):
    """Yields (dotted name, node, whether a method) of what is public in a body."""
    for node in body:
        if isinstance(node, ast.If | ast.Try):
            yield from _definitions([*node.body, *node.orelse], prefix)
        elif isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            if node.name.startswith("_") and node.name != "__call__":
                continue
            name = f"{prefix}{node.name}"
            yield name, node, bool(prefix)
            if isinstance(node, ast.ClassDef):
                yield from _definitions(node.body, f"{name}.")


def _trees():
    return {
        path: ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def _classes(trees):
    """Class name -> node, of the whole package."""
    return {
        node.name: node
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }


def _lineage(node, classes):
    """Yields the names of the bases of a class, and of theirs."""
    for base in map(ast.unparse, node.bases):
        yield base
        if base in classes and classes[base] is not node:
            yield from _lineage(classes[base], classes)


def _documented(node, classes):
    """Fields that a class explains, or a base of it in the package."""
    family = [node, *(classes[b] for b in _lineage(node, classes) if b in classes)]
    names = set()
    for member in family:
        sections = _sections(ast.get_docstring(member) or "")
        names |= _names(sections.get("Attributes", ""))
    return names


def violations():
    """All that is missing in the package, file by file.

    Returns:
      List of Violation.
    """
    trees = _trees()
    classes = _classes(trees)
    found = []
    for path, tree in trees.items():
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        for name, node, method in _definitions(tree.body):
            if isinstance(node, ast.ClassDef):
                is_module = "nn.Module" in _lineage(node, classes)
                wrong = _check_class(node, _documented(node, classes), is_module)
            else:
                wrong = _check_function(node, method)
            where = parts[0], str(path.relative_to(ROOT)), node.lineno, name
            found += [Violation(*where, what) for what in wrong]
        where = parts[0], str(path.relative_to(ROOT))
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and node.name.startswith("_"):
                for name, line, what in _check_private_class(node):
                    found.append(Violation(*where, line, name, what))
    return found


def test_every_docstring_and_signature_is_complete():
    assert not violations(), "\n".join(map(str, violations()))


COMPLETE = '''
def scale(x: Float[Array, "batch"], factor: float = 2.0) -> Float[Array, "batch"]:
    """Scales.

    Args:
      x: [B].
      factor: By which.

    Returns:
      [B].
    """
    return factor * x
'''


@pytest.mark.parametrize(
    "old, new, what",
    [
        ("", "", None),
        ("      factor: By which.\n", "", "Args lacks: factor"),
        ("    Returns:\n      [B].\n", "", "no Returns"),
        ("return", "yield", "no Yields"),
        (": float", "", "not annotated: factor"),
        (' -> Float[Array, "batch"]', "", "the return is not annotated"),
        ('x: Float[Array, "batch"]', "x: Array", "an array without a shape: x"),
        ("[B]", "Numbers", "the docstring says no shape"),
        ("return factor * x", "raise ValueError(x)", "Raises lacks: ValueError"),
        ("factor: float", "a, b, c, d, e, f, g, h", "9 parameters, more than 8"),
    ],
)
def test_what_is_missing_is_found(old, new, what):
    (function,) = ast.parse(COMPLETE.replace(old, new) if old else COMPLETE).body
    found = list(_check_function(function, method=False))
    assert what in found if what else not found


if __name__ == "__main__":
    rooms = sys.argv[1:]
    everything = violations()
    for violation in everything:
        if not rooms or violation.room in rooms:
            print(violation)
    for room, count in sorted(collections.Counter(v.room for v in everything).items()):
        print(f"{count:5d}  {room}")
    print(f"{len(everything):5d}  in all")
