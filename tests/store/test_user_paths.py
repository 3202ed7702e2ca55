"""What a user gives becomes a path in one place, which knows addresses."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent.parent / "ldm_jax"

# Files that make paths of something else than what a user gives, and why.
LOCAL = {
    "store/paths.py": "the place itself",
    "store/copies.py": "the folder of copies",
    "files.py": "files that are made on the disk, to be sent",
    "lock/holder.py": "what the system says of a process",
    "cli/configs.py": "configs are modules, which Python imports from a disk",
    "cli/failures.py": "files of the package",
    "cli/help.py": "the script that was called",
    "cli/run.py": "the cache of compiled programs",
    "data/folder/folder_source.py": "folders of single images, on a disk alone",
    "data/tokenizers.py": "a file of the package",
    "data/shapes/prepare.py": "what TensorFlow's data sets wrote, on a disk alone",
    "data/tables/huggingface.py": "files that are mapped, on a disk alone",
    "data/tables/parquet.py": "local files; others are opened by their address",
    "data/tar/index_store.py": "the folder of indexes, on a disk alone",
    "data/tar/shards.py": "local files; others are opened by their address",
    "batches/images_in_order.py": "local files; others are known by their suffix",
}


def _makes_path(node):
    """Whether a call makes a local path of a string."""
    name = ast.unparse(node.func)
    return name in ("pathlib.Path", "Path", "os.path.expanduser")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=str)
def test_paths_are_made_in_one_place(path):
    name = path.relative_to(PACKAGE).as_posix()
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    lines = [n.lineno for n in nodes if isinstance(n, ast.Call) and _makes_path(n)]
    assert bool(lines) == (name in LOCAL), f"{name}, lines {lines}: use store.as_path"
