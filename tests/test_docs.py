"""The notebook of docs/: valid, small, and run from its first cell to its last."""

import ast
import json
import pathlib

import jax
import pytest
from PIL import Image

from ldm_jax.cli import configs

DOCS = pathlib.Path(__file__).parent.parent / "docs"
NOTEBOOK = json.loads((DOCS / "tutorial.ipynb").read_text(encoding="utf-8"))


def test_notebook_is_valid_and_small():
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in NOTEBOOK["cells"]]
    assert len(set(ids)) == len(ids)
    assert (DOCS / "tutorial.ipynb").stat().st_size < 200_000
    for cell in NOTEBOOK["cells"]:
        expected = {"cell_type", "id", "metadata", "source"}
        if cell["cell_type"] == "code":
            expected |= {"execution_count", "outputs"}
        assert cell.keys() == expected
        assert cell["cell_type"] in ("code", "markdown")
        assert "".join(cell["source"]).strip()


@pytest.fixture
def toys(monkeypatch):
    """Has the notebook's configs be toys, on one device."""

    def load_toy(name):
        config = load_config(f"{name}:tiny")
        config.data.name = "shapes/32_single"
        config.train.preview_images = 2
        if "backbone" in config:
            config.backbone.channel_mult = (1,)
        return config

    load_config = configs.load_config
    monkeypatch.setattr(configs, "load_config", load_toy)
    devices = jax.local_devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    monkeypatch.setattr(jax, "local_devices", lambda: devices)


def run_cell(source, names):
    """Runs a cell; returns the value of the expression at its end, which is shown."""
    body = ast.parse(source).body
    shown = body.pop() if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), "cell", "exec"), names)
    if shown is not None:
        return eval(compile(ast.Expression(shown.value), "cell", "eval"), names)


@pytest.mark.slow
def test_the_notebook_runs(toys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = [c["source"] for c in NOTEBOOK["cells"] if c["cell_type"] == "code"]
    names, shown = {}, []
    run_cell("".join(cells[0]), names)
    assert {"STEPS", "IMAGES", "FOLDER"} <= names.keys()
    names |= {"STEPS": 2, "IMAGES": 32, "FOLDER": "work"}
    for source in cells[1:]:
        shown.append(run_cell("".join(source), names))
    images = [value for value in shown if isinstance(value, Image.Image)]
    assert len(images) == 7 and all(image.size[0] >= 96 for image in images)
