"""A folder of anybody's pictures, without classes, through the second stage."""

import numpy as np
import pytest
from PIL import Image

from ldm_jax import sampling
from ldm_jax.data.loader import DataError
from ldm_jax.data.shapes import examples
from ldm_jax.errors import ConfigError
from tests.runs import train
from tests.sampling.common import run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve pictures of several formats, modes and sizes, one of them cut short."""
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(12):
        array = examples.draw_example(1, "train", index, 40 + index)["image"]
        image = Image.fromarray(array)
        suffix, mode = [("png", "P"), ("jpg", "CMYK"), ("webp", "RGB")][index % 3]
        image.convert(mode).save(folder / f"{index}.{suffix}")
    whole = (folder / "0.png").read_bytes()
    (folder / "broken.png").write_bytes(whole[: len(whole) // 2])
    return folder


def test_trains_and_samples_without_classes(folder, first_stage, tmp_path):
    overrides = {
        "data__source": "folder",
        "data__name": str(folder),
        "data__validation_fraction": 0.3,
        "conditions__label__kind": "none",
        "first_stage__workdir": str(first_stage),
    }
    metrics = train("shapes_class", None, tmp_path / "run", whole=True, **overrides)
    assert np.isfinite(metrics["loss"])
    assert list((tmp_path / "run" / "previews").glob("samples_*.png"))
    trained = sampling.load_model(tmp_path / "run")
    run(trained, tmp_path / "out", num_samples=2)
    assert len(list((tmp_path / "out" / "samples").glob("0*.png"))) == 2
    for wrong in ({"given": {"labels": ["1"]}}, {"guidance_scale": 2.0}):
        with pytest.raises(ConfigError):
            run(trained, tmp_path / "no", num_samples=2, **wrong)


def test_labels_that_are_not_there_are_missed_at_the_start(
    folder, first_stage, tmp_path
):
    with pytest.raises(ConfigError, match="the data set has no class labels"):
        train(
            "shapes_class",
            None,
            tmp_path,
            data__source="folder",
            data__name=str(folder),
            first_stage__workdir=str(first_stage),
        )


def test_damaged_held_out_images_end_no_training(folder, first_stage, tmp_path, capsys):
    (tmp_path / "train").mkdir()
    (tmp_path / "validation").mkdir()
    for path in folder.iterdir():
        split = "validation" if path.name == "broken.png" else "train"
        (tmp_path / split / path.name).write_bytes(path.read_bytes())
    overrides = {"data__source": "folder", "data__name": str(tmp_path)}
    overrides["train__preview_images"] = 0
    train("shapes_autoencoder", None, tmp_path / "run", whole=True, **overrides)
    assert "warning: no evaluation at step 4" in capsys.readouterr().out
    with pytest.raises(DataError, match="broken.png"):
        overrides |= {"data__on_error": "raise"}
        train("shapes_autoencoder", None, tmp_path / "strict", whole=True, **overrides)
