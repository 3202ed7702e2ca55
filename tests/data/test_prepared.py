"""Prepared TFDS data: both formats give the same examples; errors name the way out."""

import contextlib
import pathlib
import pickle

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from ldm_jax.data.prepared import TfdsSource, find_path
from ldm_jax.data.records import TFRecords
from ldm_jax.data.shapes import scenes
from ldm_jax.images import decode
from tests.data.common import SIZE, TRAIN, VALIDATION, frame, make_image

NAME = f"shapes/{SIZE}"
KEYS = ("caption", "segmentation", "depth", "boxes", "box_labels", "objects.bbox")


@pytest.fixture(params=["array_record", "tfrecord"])
def data_dir(request):
    return request.getfixturevalue(f"{request.param}_dir")


def assert_same(first, second):
    assert first.keys() == second.keys()
    for key in first:
        np.testing.assert_array_equal(first[key], second[key])


def test_examples(data_dir):
    source = TfdsSource(NAME, "train", data_dir, keys=KEYS)
    assert len(source) == TRAIN
    assert source.num_classes == len(scenes.CLASS_NAMES)
    assert source.class_names == scenes.CLASS_NAMES
    example = source[7]
    assert set(example) == {"image", "label", *KEYS}
    assert example["label"] == 7 and isinstance(example["image"], bytes)
    assert decode(example["image"]).size == (SIZE, SIZE)
    assert "example 7" in source.describe(7) and NAME in source.describe(7)


def test_keys_by_other_names():
    features = {"objects": {"bbox": 0}, "captions": {"text": 0}, "segmentation_mask": 0}
    for key, path in (
        ("boxes", "objects.bbox"),
        ("caption", "captions.text"),
        ("segmentation", "segmentation_mask"),
        ("objects.bbox", "objects.bbox"),
    ):
        assert find_path("made_up", features, key) == path
    for key in ("depth", "clip"):
        with pytest.raises(ValueError, match=f'no feature "{key}"; it has captions,'):
            find_path("made_up", features, key)


def test_both_formats_agree(array_record_dir, tfrecord_dir):
    for split in ("train", "validation"):
        first, second = (
            TfdsSource(NAME, split, data_dir, keys=KEYS)
            for data_dir in (array_record_dir, tfrecord_dir)
        )
        assert len(first) == len(second)
        for index in range(len(first)):
            assert_same(first[index], second[index])


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("validation", range(VALIDATION)),
        ("validation[3:5]", range(3, 5)),
        ("validation[:50%]", range(VALIDATION // 2)),
        ("validation[-2:]", range(VALIDATION - 2, VALIDATION)),
    ],
)
def test_parts_of_splits(data_dir, split, expected):
    whole, part = (
        TfdsSource(NAME, "validation", data_dir),
        TfdsSource(NAME, split, data_dir),
    )
    assert len(part) == len(expected)
    for index, original in enumerate(expected):
        assert part[index]["image"] == whole[original]["image"]


def test_parts_across_shards(tfrecord_dir):
    whole = TfdsSource(NAME, "train", tfrecord_dir)
    part = TfdsSource(NAME, f"train[5:{TRAIN - 5}]", tfrecord_dir)
    assert len(part) == TRAIN - 10
    for index in (0, TRAIN // 2 - 6, TRAIN // 2 - 5, TRAIN - 11):
        assert part[index]["image"] == whole[index + 5]["image"]


def test_sums_of_splits(data_dir):
    source = TfdsSource(NAME, "train+validation", data_dir)
    assert len(source) == TRAIN + VALIDATION


def test_sources_travel_to_other_processes(data_dir):
    source = TfdsSource(NAME, "train", data_dir, keys=KEYS)
    source[0]
    assert_same(pickle.loads(pickle.dumps(source))[3], source[3])


def test_labels_can_be_left_out(data_dir):
    source = TfdsSource(NAME, "train", data_dir, label_key="")
    assert set(source[0]) == {"image"} and source.num_classes is None


@pytest.mark.parametrize(
    ("name", "split", "options", "message"),
    [
        ("shapes/48", "train", {}, rf"has {NAME}; prepare .*--image_size 48$"),
        ("shapes/48_single", "train", {}, "--image_size 48 --max_shapes 1"),
        ("mnist", "train", {}, r'has shapes/32; .*tfds.builder\("mnist"'),
        ("coco_captions/2014", "train", {}, "coco_captions/2014 is not prepared"),
        ("no such name!", "train", {}, "no such name!"),
        ("", "train", {}, "name is empty"),
        (NAME, "test", {}, 'has no split "test"; it has train, validation'),
        (NAME, "train[:", {}, "has no split"),
        (NAME, "train[:0]", {}, "is empty"),
        (NAME, "train", {"keys": ("mask",)}, 'no feature "mask"; it has caption'),
        (NAME, "train", {"image_key": "photo"}, 'no feature "photo"'),
        (NAME, "train", {"label_key": "objects.kind"}, 'no feature "objects.kind"'),
    ],
)
def test_errors_say_what_is_there(data_dir, name, split, options, message):
    with pytest.raises(ValueError, match=message) as error:
        TfdsSource(name, split, data_dir, **options)
    assert "\n" not in str(error.value)


def test_an_empty_root(tmp_path):
    with pytest.raises(ValueError, match="has no prepared data sets"):
        TfdsSource("shapes/64", "train", str(tmp_path / "nowhere"))


@pytest.fixture(scope="module")
def foreign_dir(tmp_path_factory):
    """A data set of another make: JPEG, no "image", no "label", several labels."""
    folder = str(tmp_path_factory.mktemp("foreign"))
    with tfds.core.registered.skip_registration():

        class Foreign(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("2.1.0")

            def _info(self):
                return tfds.core.DatasetInfo(
                    builder=self,
                    features=tfds.features.FeaturesDict(
                        {
                            "photo": tfds.features.Image(encoding_format="jpeg"),
                            "coarse": tfds.features.ClassLabel(names=["b", "a"]),
                            "count": np.int64,
                        }
                    ),
                )

            def _split_generators(self, dl_manager):
                return {"train": self._generate_examples()}

            def _generate_examples(self):
                for index in range(5):
                    image = Image.fromarray(make_image(20, 10, index))
                    yield index, {"photo": image, "coarse": index % 2, "count": index}

    tfds.disable_progress_bar()
    builder = Foreign(data_dir=folder, file_format="array_record")
    with contextlib.redirect_stdout(None):
        builder.download_and_prepare()
    return folder


def test_the_only_image_is_found(foreign_dir):
    source = TfdsSource("foreign", "train", foreign_dir)
    assert source.num_classes is None
    assert set(source[0]) == {"image"}
    assert decode(source[0]["image"]).size == (20, 10)


def test_features_under_other_names(foreign_dir):
    source = TfdsSource(
        "foreign:2.1.0", "train", foreign_dir, "photo", "coarse", keys=("count",)
    )
    assert source.class_names == ("b", "a")
    for index in range(5):
        assert source[index]["label"] == source[index]["count"] % 2


def test_damaged_shards_are_named(tmp_path):
    path = tmp_path / "x.tfrecord"
    data = frame(b"one") + frame(b"three")
    path.write_bytes(data)
    records = TFRecords([(path, 0, -1)])
    assert [records[0], records[1]] == [b"one", b"three"]
    path.write_bytes(data[:-6])
    with pytest.raises(ValueError, match="its record 1 runs beyond the end"):
        TFRecords([(path, 0, -1)])
    with pytest.raises(ValueError, match="cannot read .*nowhere: No such file"):
        TFRecords([(pathlib.Path("nowhere"), 0, -1)])
