"""A run's batches hold the inputs that its config lists, in every use of the data."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import common
from ldm_jax import sharding
from ldm_jax.batches import Data
from ldm_jax.batches.images_in_order import source_of
from ldm_jax.conditioners import Conditioner
from ldm_jax.errors import ConfigError
from tests.data.common import write_images

INPUTS = dict(
    caption=dict(kind="caption", tokenizer="shapes", max_length=12),
    masked_image=dict(kind="masked_image"),
)


@pytest.fixture
def data(shapes_dir):
    section = common.data(
        name="shapes/32", data_dir=shapes_dir, image_size=16, inputs=INPUTS
    )
    mesh = sharding.make_mesh(devices=jax.devices()[:2])
    return Data(ConfigDict(section), seed=0, batch_size=4, mesh=mesh)


def test_every_batch_has_the_inputs(data):
    (train,) = data.train_batches(3, 1)
    (held_out,) = data.held_out_batches(1)
    preview = data.preview_batch(3)
    assert held_out.keys() == {*train, "mask", "index"}
    for batch in (train, held_out, preview, data.example):
        assert batch.keys() - {"mask", "index"} == {"image", "label", *INPUTS}
        size = len(batch["image"])
        assert batch["caption"].shape == (size, 12)
        assert batch["masked_image"].shape == (size, 16, 16, 4)
        assert batch["caption"].dtype == data.example["caption"].dtype == np.int32


def test_evaluations_see_the_same_masks_each_time(data):
    first, again = (list(data.held_out_batches(2)) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one["masked_image"], other["masked_image"])


def test_examples_are_numbered_and_images_come_alone(data):
    numbers = [np.asarray(b["index"]) for b in data.held_out_batches(batch_size=5)]
    # Of 12 examples, in batches that two devices divide.
    np.testing.assert_array_equal(np.concatenate(numbers), range(12))
    assert data.num_held_out == 12

    def labelled(held_out, count):
        batches = list(data.images_alone(held_out, count, batch_size=4))
        assert all(batch.keys() == {"image", "mask"} for batch in batches)
        images = np.concatenate([np.asarray(b["image"]) for b in batches])
        return images[np.concatenate([np.asarray(b["mask"]) for b in batches])]

    whole = labelled(False, None)
    assert len(whole) == data.num_examples == 64
    np.testing.assert_array_equal(labelled(False, 5), whole[[0, 12, 25, 38, 51]])
    np.testing.assert_array_equal(labelled(True, 3), labelled(True, 99)[:3])


def test_a_held_out_split_that_is_not_there_is_named_at_once(shapes_dir):
    section = common.data(name="shapes/32", data_dir=shapes_dir, image_size=32)
    section |= {"eval_split": "validaton"}
    with pytest.raises(ConfigError, match="validaton"):
        Data(ConfigDict(section), seed=0, batch_size=8, mesh=sharding.make_mesh())


def test_what_is_wrong_with_held_out_images_is_said_once(tmp_path, caplog):
    write_images(tmp_path, ["train/0.png", "validation/0.png"], (16, 16))
    for name in ("train/0.txt", "validation/0.txt", "validation/1.txt"):
        (tmp_path / name).write_text("a red star " * 20)
    (tmp_path / "validation" / "1.png").write_text("no image")
    inputs = dict(caption=INPUTS["caption"])
    section = common.data(source="folder", name=str(tmp_path), image_size=16)
    section |= dict(inputs=inputs)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    data = Data(ConfigDict(section), seed=0, batch_size=2, mesh=mesh)
    with caplog.at_level("WARNING"):
        list(data.train_batches(0, 1))
        for _ in range(2):
            list(data.held_out_batches())
            data.preview_batch(2)
    assert caplog.text.count("validation/1.png: ") == 1
    assert caplog.text.count("only a part") == 1


def test_previews_are_squares_where_training_is_in_buckets(tmp_path):
    for k, size in enumerate([(64, 64), (96, 48), (48, 96)]):
        write_images(tmp_path, [f"{k}/{n}.png" for n in range(4)], size)
    section = common.data(source="folder", name=str(tmp_path), image_size=32)
    section |= dict(buckets=dict(step=16), eval_split="", split="all")
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    data = Data(ConfigDict(section), seed=0, batch_size=4, mesh=mesh)
    shapes = {batch["image"].shape for batch in data.train_batches(0, 6)}
    assert len(shapes) > 1
    assert data.preview_batch(4)["image"].shape == (4, 32, 32, 3)


def test_features_of_another_shape_are_skipped(tmp_path, caplog):
    write_images(tmp_path, [f"{n}.png" for n in range(6)], (16, 16))
    for n in range(6):
        width = 7 if n == 5 else 4
        np.save(tmp_path / f"{n}.emb.npy", np.zeros((3, width), np.float32))
    section = common.data(source="folder", name=str(tmp_path), image_size=16)
    section |= dict(inputs=dict(it=dict(kind="feature", feature="emb")))
    section |= dict(split="all", eval_split="")
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    data = Data(ConfigDict(section), seed=1, batch_size=6, mesh=mesh)
    entries = {"it": dict(kind="raw", slot="context")}
    data.check_examples(Conditioner(entries).check)
    with caplog.at_level("WARNING"):
        (batch,) = data.train_batches(0, 1)
    assert batch["it"].shape == (6, 3, 4)
    assert "5.png: input 'it' is of 3 x 7 numbers, and that of others of 3 x 4" in (
        caplog.text
    )


def test_each_image_that_cannot_be_read_is_counted_once(tmp_path):
    write_images(tmp_path, [f"{n}.png" for n in range(6)], (32, 32))
    (tmp_path / "0.png").write_text("no image")
    section = common.data(source="folder", name=str(tmp_path), image_size=32)
    section |= dict(eval_split="all", split="all")
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    data = Data(ConfigDict(section), seed=0, batch_size=4, mesh=mesh)
    assert data.counts(0)["data/skipped"] == 0
    # Three epochs of training, and a pass over the same images.
    assert len([*data.train_batches(0, 5), *data.held_out_batches()]) == 7
    assert data.counts(5)["data/skipped"] == 1


@pytest.mark.parametrize(
    "file, row", [("0.tar", "tar"), ("0.parquet", "parquet"), ("0.png", "folder")]
)
def test_a_flag_names_a_folder_of_any_kind(file, row, tmp_path):
    (tmp_path / file).touch()
    assert source_of(str(tmp_path)) == row
    assert source_of("shapes/32") == "tfds"
