"""A new kind of side information is one row of MODALITIES: here, surface normals."""

import re

import jax
import numpy as np
import pytest
from absl import flags
from ml_collections import ConfigDict
from PIL import Image

from ldm_jax import sampling
from ldm_jax.data.folder import FolderSource
from ldm_jax.data.modalities import MODALITIES
from ldm_jax.data.prepared import find_path
from ldm_jax.data.transforms import transform
from ldm_jax.errors import ConfigError
from ldm_jax.images import read_image, to_uint8
from ldm_jax.sampling.flag_values import define_flags, read_flags
from tests.data.common import always_mirrors, make_image
from tests.runs import train
from tests.test_imports import ROOT

SIZE = 32


def _row_of_the_page():
    """The row as docs/extending.md has it."""
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, flags=re.M | re.S)
    (block,) = (block for block in blocks if 'MODALITIES["normals"]' in block)
    exec(compile(block, "extending.md", "exec"), {})
    return MODALITIES.pop("normals")


NORMALS = _row_of_the_page()


@pytest.fixture
def normals(monkeypatch):
    """The table with one row more."""
    monkeypatch.setitem(MODALITIES, "normals", NORMALS)


@pytest.fixture
def folder(tmp_path):
    """Images with normals beside them; those of image k are of one colour."""
    folder = tmp_path / "images"
    folder.mkdir()
    for k in range(8):
        Image.fromarray(make_image(SIZE, SIZE, k)).save(folder / f"{k}.png")
        Image.fromarray(color(k)).save(folder / f"{k}.normals.png")
    return folder


def color(k):
    return np.full((SIZE, SIZE, 3), (200, 20 + k, 100), np.uint8)


def parse(*arguments):
    """What the command makes of its flags: name -> list of strings, or None."""
    values = flags.FlagValues()
    holders = define_flags(values)
    values(["sample.py", *arguments])
    return {name: holder.value for name, holder in holders.items()}


def test_folders_and_prepared_sets_have_it(normals, folder):
    source = FolderSource(str(folder), "all", keys=("normals",))
    assert len(source) == 8
    example = transform(source[3], SIZE)["normals"]
    assert example.shape == (SIZE, SIZE, 3) and example.dtype == np.float32
    np.testing.assert_array_equal(to_uint8(example), color(3))
    mirrored = transform(source[3], SIZE, "center", True, always_mirrors())["normals"]
    np.testing.assert_array_equal(mirrored, example * np.float32([-1, 1, 1]))
    assert find_path("any", {"normal_map": 0}, "normals") == "normal_map"


def test_floats_of_a_data_set_are_taken_as_they_are(normals):
    vectors = np.random.default_rng(0).uniform(-1, 1, (SIZE, SIZE, 3)).astype("f4")
    example = {"image": make_image(SIZE, SIZE), "normals": vectors}
    np.testing.assert_array_equal(transform(example, SIZE)["normals"], vectors)


def test_flags_follow_the_table(normals, folder):
    given = parse("--normals=a.png,b.png", "--prompt=a, b", "--labels=1,2")
    assert given["normals"] == ["a.png", "b.png"]
    assert given["prompt"] == ["a, b"] and given["labels"] == ["1", "2"]
    assert given["depth"] is None
    assert given.keys() == {f.name for row in MODALITIES.values() for f in row.flags}
    # A folder that training reads has the maps beside the images.
    values = read_flags({"normals": str(folder)})["normals"]
    assert values.values == tuple(str(folder / f"{k}.normals.png") for k in range(8))


def test_without_the_row_there_is_no_such_flag():
    with pytest.raises(flags.UnrecognizedFlagError):
        parse("--normals=a.png")
    with pytest.raises(ConfigError, match="there is no flag --normals"):
        read_flags({"normals": ["a.png"]})


def test_it_is_trained_on_previewed_sampled_and_shown(
    normals, folder, tmp_path, monkeypatch
):
    workdir, outdir = tmp_path / "run", tmp_path / "samples"
    train(
        "shapes_class",
        None,
        workdir,
        whole=True,
        data__source="folder",
        data__name=str(folder),
        data__validation_fraction=0.5,
        data__inputs=ConfigDict(dict(normals=dict(kind="map"))),
        conditions=ConfigDict(dict(normals=dict(kind="spatial", num_stages=0))),
        first_stage__workdir="identity",
        train__num_steps=2,
    )
    previews = sorted(path.name for path in (workdir / "previews").glob("*.png"))
    assert any(name.startswith("condition_normals") for name in previews), previews

    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    model = sampling.load_model(workdir)
    with pytest.raises(ConfigError, match="conditioned on normals: give --normals"):
        sampling.run(model, outdir, parse())
    given = parse(f"--normals={folder / '2.normals.png'},{folder / '5.normals.png'}")
    options = sampling.RunOptions(num_samples=2, batch_size=2, npz=True)
    sampling.run(model, outdir, given, options)
    with np.load(outdir / "samples.npz") as file:
        assert file["arr_0"].shape == (2, SIZE, SIZE, 3)
        np.testing.assert_array_equal(file["normals"], file["input_normals"])
        np.testing.assert_array_equal(to_uint8(file["normals"]), [color(2), color(5)])
    sheet = read_image(outdir / "sheet.png")
    for k in (2, 5):
        # Small images are enlarged to 192 pixels.
        assert (sheet == color(k)[0, 0]).all(axis=-1).sum() >= 192**2
