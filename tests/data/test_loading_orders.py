"""The loader on sources with orders, buckets and examples of their own."""

import numpy as np
import pytest

from ldm_jax.data.load_batch import LoaderOptions
from ldm_jax.data.loader import Loader, make_loader
from ldm_jax.data.open_source import open_source
from ldm_jax.data.orders.buckets import BucketOptions, make_buckets
from ldm_jax.data.sources import SOURCES
from ldm_jax.errors import ConfigError, DataError
from tests.data.common import make_image, write_images


class Odd:
    """Images of many shapes in memory; the label of example i is i."""

    num_classes, class_names = None, None

    def __init__(self, count, broken=()):
        rng = np.random.default_rng(0)
        self._sizes = rng.integers(20, 60, (count, 2)).astype(np.int32)
        self.broken = broken

    def __len__(self):
        return len(self._sizes)

    def __getitem__(self, index):
        height, width = self._sizes[index]
        image = b"none" if index in self.broken else make_image(width, height, index)
        return {"image": image, "label": index}

    def describe(self, index):
        return f"image {index}"

    def sizes(self):
        return self._sizes


BUCKETS = BucketOptions(sizes=(24, 40), step=8)


def load(source, steps, **options):
    batches = Loader(
        source,
        LoaderOptions(24, crop="random", flip=True, buckets=BUCKETS),
        **dict(batch_size=8) | options,
    )
    try:
        return [next(batches) for _ in range(steps)], batches
    finally:
        batches.close()


def assert_same(first, second):
    for one, other in zip(first, second, strict=True):
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


def test_batches_in_buckets_have_many_shapes_and_every_image():
    batches, _ = load(Odd(50), 25)
    assert len({batch["image"].shape for batch in batches}) > 3
    seen = np.concatenate([batch["label"] for batch in batches]).reshape(4, 50)
    assert (np.sort(seen) == np.arange(50)).all()


def test_a_run_in_buckets_goes_on_anywhere_and_on_any_number_of_processes():
    source = Odd(50, broken={7})
    whole, loader = load(source, 12)
    assert list(loader.skipped) == ["image 7"]
    assert_same(whole[5:], load(source, 7, start_step=5)[0])
    for count in (2, 4):
        rows = np.split(np.arange(8), count)
        parts = [load(source, 12, rows=rows[p])[0] for p in range(count)]
        joined = [
            {key: np.concatenate([part[key] for part in row]) for key in row[0]}
            for row in zip(*parts, strict=True)
        ]
        assert_same(whole, joined)


def test_workers_load_the_same_buckets():
    expected, _ = load(Odd(20), 4)
    source = Odd(20)
    options = LoaderOptions(24, crop="random", flip=True, buckets=BUCKETS, workers=1)
    batches = Loader(source, options, batch_size=8)
    try:
        assert_same(expected, [next(batches) for _ in range(4)])
    finally:
        batches.close()


def test_held_out_images_stay_squares():
    options = LoaderOptions(24, buckets=BUCKETS)
    batches = Loader(Odd(6), options, batch_size=4, train=False)
    assert {batch["image"].shape for batch in batches} == {(4, 24, 24, 3)}


def test_buckets_need_sizes_and_images():
    source = Odd(4)
    source.encoded = True
    with pytest.raises(ValueError, match="buckets are of images"):
        load(source, 1)
    with pytest.raises(ValueError, match="which this source does not know"):
        load([{"image": make_image(8, 8)}], 1)


@pytest.mark.parametrize(
    "buckets, message",
    [
        (dict(steps=8), 'data.buckets.steps is not an option; did you mean "step"'),
        (dict(step=0), "data.buckets.step must be from 1"),
        (dict(max_ratio=0.5), "data.buckets.max_ratio must be in"),
        (dict(sizes=(8, 32), step=16), "data.buckets: sizes has 8, which is less"),
        (dict(step=64), "data.buckets: sizes has 32, which is less than step=64"),
    ],
)
def test_wrong_buckets_are_one_line(buckets, message):
    with pytest.raises(ConfigError, match=message):
        make_buckets(dict(image_size=32, buckets=buckets))
    assert make_buckets(dict(image_size=32, buckets={})) is None


# ---- Mixtures of what the config names.


@pytest.fixture
def section(tmp_path):
    write_images(tmp_path / "art", [f"a/{k}.png" for k in range(12)])
    write_images(tmp_path / "photos", [f"b/{k}.png" for k in range(30)])
    return dict(
        source="mixture",
        data_dir=str(tmp_path),
        split="train",
        eval_split="validation",
        image_size=8,
        validation_fraction=0.2,
        parts=dict(
            art=dict(source="folder", name="art", weight=0.5),
            photos=dict(source="folder", name="photos", weight=0.5),
        ),
    )


def test_a_mixture_of_folders_is_loaded_by_weight(section):
    source = open_source(section, "train")
    assert source.class_names == ("a", "b")
    batches = make_loader(source, section, batch_size=8, seed=0)
    labels = np.concatenate([next(batches)["label"] for _ in range(10)])
    batches.close()
    assert abs(labels.sum() - 40) <= 2 * len(source) * 0.1
    held_out = open_source(section, "validation")
    assert len(held_out) + len(source) == 42


def test_parts_say_their_own_splits(section):
    section["parts"]["art"]["split"] = "all"
    section["parts"]["photos"]["eval_split"] = ""
    assert len(open_source(section, "validation")) < 12
    whole = open_source(section, "train")
    assert sum("/art/" in whole.describe(k) for k in range(len(whole))) == 12


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(nme="x"), 'data.parts.art.nme is not an option; did you mean "name"'),
        (dict(source="foldr"), 'data.parts.art.source="foldr" is unknown; did you'),
        (dict(name="nowhere"), "data.parts.art: folder .*nowhere does not exist"),
        (dict(weight=0), "data.parts.art.weight must be more than 0"),
        (dict(crop="random"), "data.parts.art.crop is one for the whole mixture"),
        (dict(split=3), "data.parts.art.split must be a string"),
    ],
)
def test_wrong_parts_are_one_line(section, changes, message):
    section["parts"]["art"] |= changes
    with pytest.raises(ConfigError, match=message):
        open_source(section, "train")


def test_a_mixture_of_nothing_says_what_to_give(section):
    with pytest.raises(ConfigError, match="give data.parts"):
        open_source(section | {"parts": {}}, "train")


# ---- What opening left out, and examples that are encoded.


class Encoded:
    """Examples as batches hold them; of each there are two versions."""

    num_classes, class_names, encoded = None, None, True
    skipped = [("shard 3", "damaged")]

    def __init__(self, split):
        del split

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return {"latents": np.full((2, 2, 1), index, np.float32)}

    def describe(self, index):
        return f"example {index}"

    def draw(self, index, rng, flip):
        mirrored = flip and rng.random() < 0.5
        return {"latents": (-1 if mirrored else 1) * self[index]["latents"]}


def test_encoded_examples_are_taken_as_they_are():
    section = dict(image_size=8, flip=True)
    batches = make_loader(Encoded("train"), section, batch_size=6, seed=0)
    found = next(batches)["latents"]
    batches.close()
    assert sorted(abs(found[:, 0, 0, 0])) == list(range(6)) and found.min() < 0
    (batch,) = make_loader(Encoded("train"), section, batch_size=6, seed=0, train=False)
    assert batch["latents"][:, 0, 0, 0].tolist() == list(range(6))


def test_what_opening_left_out_is_named_or_refused(monkeypatch, caplog):
    monkeypatch.setitem(SOURCES, "encoded", Encoded)
    open_source(dict(source="encoded"), "train")
    assert "skipped shard 3: damaged" in caplog.text
    with pytest.raises(DataError, match="shard 3: damaged .1 such"):
        open_source(dict(source="encoded", on_error="raise"), "train")
