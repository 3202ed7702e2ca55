"""Imports go one way through the package, from the rooms above to those below."""

import ast
import functools
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent

# The rooms by floor, from the ground up: a module may import its own room and what lies
# on the floors below, so rooms of one floor know nothing of one another.
FLOORS = (
    ("annotations", "commands", "errors", "console", "flops"),
    ("chips", "store"),
    ("draws", "files", "peers", "ranges", "reading", "seeds"),
    ("config", "cli", "lock", "images", "sharding", "models", "diffusion", "tiling"),
    ("data", "checkpoint", "weights", "conditioners"),
    ("batches", "latent_diffusion", "metrics", "sections"),
    ("build", "generate", "latent_classifier"),
    ("trained", "eval_samples"),
    ("training", "sampling", "convert"),
    ("evaluation", "encoding", "planning"),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted((ROOT / "ldm_jax").rglob("*.py"))


@functools.cache
def _imports(path):
    """The modules that a file imports, wherever in it they stand."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [node.module or ""]
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return tuple(found)


@functools.cache
def _modules():
    """Module name -> names that it imports from the package."""
    graph = {}
    for path in FILES:
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        graph[name] = {n for n in _imports(path) if n.startswith("ldm_jax.")}
    for name, imported in graph.items():
        # `from package import module` loads the module; the package is on the way.
        graph[name] = {
            n
            for n in imported
            if not any(m in graph for m in imported if m != n and m.startswith(f"{n}."))
        }
    return graph


def _room(name):
    """The room of a module: its first part below the package."""
    return name.split(".")[1]


def test_every_file_is_in_a_room_and_every_room_is_there():
    rooms = {_room(name) for name in _modules() if name != "ldm_jax"}
    assert rooms == FLOOR_OF.keys()


@pytest.mark.parametrize("room", FLOOR_OF)
def test_rooms_import_downwards_only(room):
    for name, imported in _modules().items():
        if name == "ldm_jax" or _room(name) != room:
            continue
        for other in imported:
            if other == "ldm_jax.__version__":
                continue
            below = FLOOR_OF[_room(other)] < FLOOR_OF[room]
            assert below or _room(other) == room, f"{name} imports {other}"


def test_no_module_imports_itself_on_a_way_round():
    graph = _modules()
    done = set()

    def visit(name, way):
        assert name not in way, " -> ".join([*way[way.index(name) :], name])
        if name in graph and name not in done:
            for other in graph[name]:
                visit(other, [*way, name])
            done.add(name)

    for name in graph:
        visit(name, [])


def test_the_package_imports_no_config():
    for path in FILES:
        assert not any(name.split(".")[0] == "configs" for name in _imports(path))


def test_no_folder_shows_more_than_eighteen_files():
    for folder in {path.parent for path in FILES}:
        count = len([p for p in folder.glob("*.py") if p.name != "__init__.py"])
        assert count <= 18, f"{folder} holds {count} files"


@pytest.mark.parametrize("room", ["data", "images", "config", "ranges"])
def test_data_never_imports_jax(room):
    folder = ROOT / "ldm_jax" / room
    files = folder.rglob("*.py") if folder.is_dir() else [folder.with_suffix(".py")]
    for path in files:
        for name in _imports(path):
            assert name.split(".")[0] not in ("jax", "flax"), f"{path.name}: {name}"


def test_configs_import_no_code():
    for path in (ROOT / "configs").glob("*.py"):
        for name in _imports(path):
            assert name.split(".")[0] in ("ml_collections", "configs"), path.name


def test_pytorch_stays_in_the_benchmarks():
    for path in (ROOT / "ldm_jax").rglob("*.py"):
        for name in _imports(path):
            assert name.split(".")[0] not in ("torch", "diffusers"), path.name
