"""Files beside the images of a folder, from the disk to the batch."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from configs import common
from ldm_jax.data.folder import FolderSource
from ldm_jax.data.layout import decode_layout
from ldm_jax.data.loader import DataError, make_loader
from ldm_jax.data.modalities import MODALITIES, keys_of
from ldm_jax.data.open_source import open_source
from ldm_jax.data.sidecars import find_sidecars, read_sidecar
from ldm_jax.data.transforms import transform
from tests.data.common import always_mirrors, write_images

LAYOUT = [
    {"label": "dog", "box": [0, 0, 1, 0.5]},
    {"label": 0, "box": [0.5, 0.25, 1, 1]},
]


@pytest.fixture
def folder(tmp_path):
    """Two images 40 x 30 with everything beside them."""
    write_images(tmp_path, ["a.jpg", "sub/b.png"])
    for stem in ("a", "sub/b"):
        left = np.zeros((30, 40), np.uint8)
        left[:, :20] = 255
        for name in ("depth", "mask"):
            Image.fromarray(left).save(tmp_path / f"{stem}.{name}.png")
        Image.fromarray(left // 85).save(tmp_path / f"{stem}.segmentation.png")
        Image.fromarray(left).resize((8, 6)).save(tmp_path / f"{stem}.low_res.png")
        (tmp_path / f"{stem}.txt").write_text(f"the image {stem}\n")
        (tmp_path / f"{stem}.json").write_text(json.dumps(LAYOUT))
        np.save(tmp_path / f"{stem}.clip.npy", np.arange(5.0))
    return tmp_path


def section(folder, inputs, **changes):
    return ConfigDict(
        common.data(
            source="folder",
            name=str(folder),
            split="all",
            image_size=16,
            box_names=("cat", "dog"),
            inputs=inputs,
        )
        | changes
    )


def read(path, key, names=None):
    """What lies beside an image under one key."""
    (sidecar,) = find_sidecars([key])
    return read_sidecar(str(path), sidecar, names)[key]


def load(data, steps=1):
    loader = make_loader(open_source(data, "all"), data, batch_size=2, seed=0)
    try:
        return [next(loader) for _ in range(steps)][-1], loader.skipped
    finally:
        loader.close()


def test_sidecars_are_not_images(folder):
    assert len(FolderSource(str(folder), "all")) == 2
    write_images(folder, ["lonely.depth.png"])
    # It belongs to no image, so it is one.
    assert len(FolderSource(str(folder), "all")) == 3


def test_examples_have_what_is_asked_for(folder):
    rows = [name for name, row in MODALITIES.items() if row.suffix]
    keys = (*(key for name in rows for key in keys_of(name)), "clip")
    assert len(keys) == 8
    source = FolderSource(str(folder), "all", keys=keys, box_names=("cat", "dog"))
    example = source[0]
    assert example.keys() == {"image", *keys}
    assert example["caption"] == "the image a"
    assert example["box_labels"].tolist() == [1, 0]
    np.testing.assert_array_equal(example["clip"], np.arange(5.0))
    assert FolderSource(str(folder), "all")[0].keys() == {"image"}


@pytest.mark.parametrize("flip", [False, True])
def test_maps_follow_the_image(folder, flip):
    keys = ("segmentation", "mask", "low_res", "boxes", "box_labels", "depth")
    source = FolderSource(str(folder), "all", keys=keys, box_names=("cat", "dog"))

    result = transform(source[0], 16, "center", flip, always_mirrors())
    bright, dark = (slice(9, None), slice(7)) if flip else (slice(7), slice(9, None))
    assert (result["segmentation"][:, bright] == 3).all()
    assert (result["segmentation"][:, dark] == 0).all()
    assert result["mask"].dtype == bool and result["mask"][:, bright].all()
    assert not result["mask"][:, dark].any()
    # At its own resolution: 6 of 8 columns are in the crop.
    assert result["low_res"].shape == (6, 6, 3)
    columns = result["low_res"].mean((0, 2))
    assert (columns[:2].min() > 200) != flip and (columns[-2:].min() > 200) == flip
    # The first box is the left half of 40 columns; the crop takes 5 to 35.
    left, right = (0.5, 1) if flip else (0, 0.5)
    np.testing.assert_allclose(result["boxes"][0], [0, left, 1, right], atol=1e-6)


def test_batches_of_a_folder(folder):
    inputs = dict(
        caption=dict(kind="caption", tokenizer="shapes", max_length=8),
        boxes=dict(kind="layout", vocab_size=100),
        segmentation=dict(kind="segmentation"),
        depth=dict(kind="depth"),
        embedding=dict(kind="feature", feature="clip"),
    )
    batch, skipped = load(section(folder, inputs))
    assert batch.keys() == {"image", *inputs} and not skipped
    assert sorted(decode_layout(batch["boxes"][0], 100)[1]) == [0, 1]
    np.testing.assert_array_equal(batch["embedding"], [np.arange(5.0)] * 2)


def test_maps_of_the_source_take_the_place_of_drawn_ones(folder):
    inputs = dict(masked_image=dict(kind="masked_image"), low_res=dict(kind="low_res"))
    batch, _ = load(section(folder, inputs, keys=("mask", "low_res")))
    assert (batch["masked_image"][:, :, :8, 3] == 1).all()
    assert (batch["masked_image"][:, :, 8:, 3] == 0).all()
    assert batch["low_res"].shape == (2, 4, 4, 3)
    assert (batch["low_res"][:, :, 0] > 0.9).all()


def test_a_missing_sidecar_is_counted_and_skipped(folder):
    (folder / "a.txt").unlink()
    inputs = dict(caption=dict(kind="caption", tokenizer="shapes", max_length=8))
    batch, skipped = load(section(folder, inputs), steps=2)
    assert skipped == {str(folder / "a.jpg"): "a.txt is missing"}
    np.testing.assert_array_equal(batch["caption"][0], batch["caption"][1])
    with pytest.raises(DataError, match="a.jpg: a.txt is missing; repair or remove it"):
        load(section(folder, inputs, on_error="raise"), steps=2)


@pytest.mark.parametrize(
    "entry, file",
    [
        (dict(kind="layout", vocab_size=100), ".json"),
        (dict(kind="caption", tokenizer="shapes", max_length=8), ".txt"),
        (dict(kind="depth"), ".depth.png"),
        (dict(kind="feature", feature="clip"), ".clip.npy .captions from x.clip.txt."),
    ],
    ids=lambda value: value if isinstance(value, str) else value["kind"],
)
def test_what_wants_a_file_that_no_image_has_is_named(entry, file, tmp_path):
    write_images(tmp_path, ["a.png", "b.png"])
    message = f"; the input `it` must be read from x{file} beside x.png .docs/data.md"
    with pytest.raises(DataError, match=f"100 attempts .* is missing{message}"):
        load(section(tmp_path, dict(it=entry)))
    with pytest.raises(DataError, match=f'data.on_error="skip"{message}'):
        load(section(tmp_path, dict(it=entry), on_error="raise"))


@pytest.mark.parametrize(
    ("key", "suffix", "content", "message"),
    [
        ("boxes", ".json", "[", "a.json: Expecting value"),
        ("boxes", ".json", '[{"label": "cow", "box": [0, 0, 1, 1]}]', "a.json: .*cow"),
        ("caption", ".txt", b"\xff\xfe", "a.txt: line 1 is not UTF-8"),
        ("clip", ".clip.npy", "no array", "a.clip.npy: "),
    ],
)
def test_a_sidecar_that_cannot_be_read(folder, key, suffix, content, message):
    content = content if isinstance(content, bytes) else content.encode()
    (folder / f"a{suffix}").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read(folder / "a.jpg", key, ("cat", "dog"))


def test_each_line_is_a_caption(folder):
    path = folder / "a.txt"
    path.write_text("one\n\ntwo \r\n")
    assert read(folder / "a.jpg", "caption") == ["one", "two"]
    path.write_text("")
    assert read(folder / "a.jpg", "caption") == ""
