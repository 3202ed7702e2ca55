"""A class is found by its name or its number, one that is out of range by nothing."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from configs import common
from ldm_jax.conditioners import make_conditioner
from ldm_jax.data.labels import find_class
from ldm_jax.data.layout import check_boxes, parse_layout, without_area
from ldm_jax.data.loader import make_loader
from ldm_jax.data.open_source import open_source
from ldm_jax.errors import ConfigError, DataError
from ldm_jax.sampling.flag_values import Names, read_flags
from tests.data.common import write_images


@pytest.mark.parametrize(
    ("label", "names", "number"),
    [
        ("2", ("0", "1", "10", "2"), 3),
        (2, ("0", "1", "10", "2"), 3),
        ("3", ("0", "1", "10", "2"), None),
        ("10", ("0", "1", "10", "2"), 2),
        ("7", ("007", "008"), 0),
        ("7", ("07", "7"), 1),
        ("7", ("07", "007"), None),
        ("0", ("cat", "3"), None),
        ("3", ("cat", "3"), 1),
        ("1", ("cat", "dog"), 1),
        ("2", ("cat", "dog"), None),
        ("dog", ("cat", "dog"), 1),
        ("-1", ("cat", "dog"), None),
        ("5", (), 5),
        ("five", (), None),
        ("9" * 5000, (), None),
        ("-1", ("-1", "1"), 0),
    ],
)
def test_a_class_by_name_or_number(label, names, number):
    assert find_class(label, names) == number


def test_flags_and_files_call_classes_alike():
    names = Names(("0", "1", "10", "2"), ("1", "2"))
    assert read_flags({"labels": ["2", "10"]}, names)["label"].values == (3, 2)
    with pytest.raises(ConfigError, match="no class '3'.* choose from 0, 1, 10, 2"):
        read_flags({"labels": ["3"]}, names)
    for label in (2, "2"):
        layout = [{"label": label, "box": [0, 0, 1, 1]}]
        assert parse_layout(layout, names.boxes)[1].tolist() == [1]
    with pytest.raises(ValueError, match="label 0 of a box is unknown"):
        parse_layout([{"label": 0, "box": [0, 0, 1, 1]}], names.boxes)


def test_boxes_are_cut_off_where_they_are_beyond_by_a_rounding():
    boxes = [[0.2, 0.3, 1.0, 1.0000000002], [-0.001, 0, 1.01, 1], [0.5, 0.2, 0.5, 0.4]]
    expected = [[0.2, 0.3, 1, 1], [0, 0, 1, 1], [0.5, 0.2, 0.5, 0.4]]
    checked = check_boxes(boxes)
    np.testing.assert_array_equal(checked, np.asarray(expected, np.float32))
    assert without_area(checked).tolist() == [False, False, True]
    assert check_boxes([]).shape == (0, 4)
    for wrong in ([0, 0, 1, 1.1], [0.5, 0, 0.4, 1], [0, 0, 1, np.nan], [0, 0, 30, 40]):
        with pytest.raises(ValueError, match="must have 0 <= ymin < ymax <= 1"):
            check_boxes([wrong])


def section(folder, inputs, **changes):
    return ConfigDict(
        common.data(source="folder", name=str(folder), image_size=8, inputs=inputs)
        | changes
    )


def load(data, train=True, check=None):
    """The first batch of two, what was skipped and what misses a part."""
    source = open_source(data, "all")
    loader = make_loader(source, data, batch_size=2, seed=0, train=train, check=check)
    try:
        batch = next(loader)
        return batch, loader.skipped, loader.shortened
    finally:
        loader.close()


def test_boxes_without_area_are_dropped_and_counted_and_the_image_stays(tmp_path):
    write_images(tmp_path, ["a.png", "b.png"])
    whole = {"label": 1, "box": [0.1, 0.1, 0.5, 0.5]}
    beyond = {"label": 2, "box": [0.2, 0.3, 1.0, 1.0000000002]}
    flat = {"label": 3, "box": [0.2, 0.3, 0.2, 0.9]}
    (tmp_path / "a.json").write_text(json.dumps([whole, beyond]))
    (tmp_path / "b.json").write_text(json.dumps([flat, whole, flat]))
    data = section(tmp_path, {}, keys=("boxes", "box_labels"))
    batch, skipped, shortened = load(data, train=False)
    assert not skipped and batch["mask"].all()
    assert batch["box_labels"][:, :3].tolist() == [[1, 2, -1], [1, -1, -1]]
    note = "2 of 3 boxes without area left out"
    assert shortened == {str(tmp_path / "b.png"): note}


def out_of_range(tmp_path):
    """Two images with maps, the second of which holds the class 7, and a check."""
    write_images(tmp_path, ["a.png", "b.png"])
    for stem, label in (("a", 4), ("b", 7)):
        labels = np.zeros((30, 40), np.uint8)
        labels[5:, 5:] = label
        Image.fromarray(labels).save(tmp_path / f"{stem}.segmentation.png")
    entry = {"kind": "spatial", "num_stages": 0, "num_classes": 5}
    return entry, {"segmentation": {"kind": "segmentation"}}


@pytest.mark.parametrize("train", [True, False])
def test_examples_out_of_range_are_named_and_not_taken(tmp_path, train):
    entry, inputs = out_of_range(tmp_path)
    check = make_conditioner({"segmentation": entry}).check
    batch, skipped, _ = load(section(tmp_path, inputs), train, check)
    assert batch["segmentation"].max() == 4
    assert train or batch["mask"].tolist() == [True, False]
    ((where, reason),) = skipped.items()
    assert where == str(tmp_path / "b.png")
    assert reason.startswith("condition 'segmentation': label 7 is out of range")
    with pytest.raises(DataError, match="b.png: condition 'segmentation': label 7"):
        load(section(tmp_path, inputs, on_error="raise"), train, check)

    check = make_conditioner({"segmentation": entry | {"ignore_label": 7}}).check
    batch, skipped, _ = load(section(tmp_path, inputs), train, check)
    assert not skipped and batch["segmentation"].max() == 7


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((4, 4), 1.5, np.float32), "holds 1.5: labels are whole"),
        (np.full((4, 4), np.nan, np.float32), "holds nan: labels are whole"),
        (np.full((4, 4), 2**40), "labels are whole numbers of 32 bits"),
    ],
)
def test_labels_that_are_none(values, message):
    from ldm_jax.images.map_decoding import decode_labels

    with pytest.raises(ValueError, match=message):
        decode_labels(values)
    assert decode_labels(np.full((4, 4), 3.0, np.float32)).max() == 3
