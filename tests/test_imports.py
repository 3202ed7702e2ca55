"""Imports go one way through the package (the table in CONTRIBUTING.md)."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent

# Room -> the rooms it may import from, itself included.
BASE = {"config", "images", "models", "data"}
PARTS = BASE | {"conditioners", "diffusion", "sharding", "checkpoint"}
# Files of weights are for all; the formats of whole models stand above training.
WEIGHTS = {
    f"convert.{name}"
    for name in (
        "files",
        "image_rows",
        "lpips",
        "state_dict",
        "text_rows",
        "towers",
        "unpickle",
    )
}
ALLOWED = {
    "config": {"config"},
    "images": {"images", "data"},
    "data": {"data", "config"},
    "models": {"models"},
    "conditioners": {"conditioners", "models"},
    "diffusion": {"diffusion", "tiling"},
    "sharding": {"sharding", "config"},
    "checkpoint": {"checkpoint", "sharding", "config"},
    "weights": {"weights", "config", "models"},
    "convert": {"convert", "weights", "latent_diffusion", "training", "cli"} | PARTS,
    "tiling": {"tiling"},
    "denoiser": {"denoiser", "diffusion", "tiling"},
    "latent_diffusion": {"latent_diffusion"} | PARTS,
    "generation": {"generation", "latent_diffusion", "denoiser", "tiling"} | PARTS,
    "inversion": {"inversion", "denoiser", "latent_diffusion"} | PARTS,
    "training": {"training", "latent_diffusion", "generation", "weights", "panels"}
    | PARTS,
    "evaluation": {"evaluation", "sampling", "training", "weights", "tiling", "cli"}
    | PARTS,
    "panels": {"panels", "images", "data"},
    "sampling": {"sampling", "panels", "inversion", "tiling", "training"}
    | {"latent_diffusion", "generation", "weights"}
    | PARTS,
    "cli": {"cli", "training"} | PARTS,
    "__init__": set(),
}


def _imports(path):
    """Yields the modules that a file imports, wherever in it they stand."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _room(parts):
    """Room of a module of the package, given as the parts of its name."""
    return "weights" if ".".join(parts[:2]) in WEIGHTS else parts[0]


@pytest.mark.parametrize(
    "path",
    sorted((ROOT / "ldm_jax").rglob("*.py")),
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_rooms_import_downwards_only(path):
    relative = path.relative_to(ROOT / "ldm_jax").with_suffix("")
    room = _room(relative.parts)
    for name in _imports(path):
        parts = name.split(".")
        if parts[0] == "configs":
            raise AssertionError(f"{path.name} imports {name}")
        if parts[0] == "ldm_jax" and len(parts) > 1 and parts[1] != "__version__":
            assert _room(parts[1:]) in ALLOWED[room], f"{room} imports {name}"


@pytest.mark.parametrize("room", ["data", "images", "config"])
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
