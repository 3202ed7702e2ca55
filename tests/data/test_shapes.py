"""The builder prepares `shapes` whole or not at all, and says what it did."""

import functools
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from ldm_jax.data.shapes import examples, prepare
from tests.data.common import SIZE, TRAIN, VALIDATION
from tests.runs import command, finish

PATH = {"PYTHONPATH": str(pathlib.Path(prepare.__file__).parents[3])}


def test_what_is_read_is_what_was_drawn(array_record_dir):
    for split, count in (("train", TRAIN), ("validation", VALIDATION)):
        source = tfds.data_source(
            f"shapes/{SIZE}", split=split, data_dir=array_record_dir
        )
        assert len(source) == count
        for index in (0, count - 1):
            example = source[index]
            drawn = examples.draw_example(0, split, index, SIZE)
            np.testing.assert_array_equal(example["image"], drawn["image"])
            for key in ("segmentation", "depth"):
                np.testing.assert_array_equal(example[key][..., 0], drawn[key])
            assert example["label"] == drawn["label"]
            assert example["caption"].decode() == drawn["caption"]
            boxes, labels = example["objects"]["bbox"], example["objects"]["label"]
            np.testing.assert_array_equal(boxes, drawn["boxes"])
            np.testing.assert_array_equal(labels, drawn["box_labels"])


def test_a_second_call_writes_nothing(tmp_path):
    arguments = [f"--data_dir={tmp_path}", "--image_size=16", "--max_shapes=1"]
    arguments += ["--num_train=3", "--num_validation=2"]
    run = functools.partial(command, "ldm_jax.data.shapes", *arguments)
    status, wrote = finish(run())
    assert status == 0 and "wrote 3 + 2 images" in wrote
    path = tmp_path / "shapes" / "16_single" / examples.VERSION
    before = {file: file.stat().st_mtime_ns for file in path.iterdir()}
    status, found = finish(run())
    assert status == 0 and "already prepared" in found
    assert {file: file.stat().st_mtime_ns for file in path.iterdir()} == before
    status, output = finish(run("--num_train=4"))
    assert status == 2 and output.startswith("error: ")
    assert re.search(r"num_train=3 instead of 4.*--overwrite", output)
    more = "--num_train=4", "--num_validation=0", "--overwrite"
    status, output = finish(run(*more))
    assert status == 0, output
    source = tfds.data_source("shapes/16_single", data_dir=tmp_path)
    assert list(source) == ["train"] and len(source["train"]) == 4


def test_a_larger_copy_begins_with_the_smaller_one(array_record_dir, tmp_path):
    prepare.prepare(str(tmp_path), SIZE, num_train=TRAIN + 8, num_validation=0)
    name = f"shapes/{SIZE}"
    small = tfds.data_source(name, split="train", data_dir=array_record_dir)
    large = tfds.data_source(name, split="train", data_dir=str(tmp_path))
    for index in range(0, TRAIN, 7):
        np.testing.assert_array_equal(small[index]["image"], large[index]["image"])


def test_an_interrupted_call_leaves_no_data_set(tmp_path, monkeypatch):
    def fail(seed, split, index, *rest):
        if index == 2:
            raise KeyboardInterrupt
        return draw(seed, split, index, *rest)

    draw = examples.draw_example
    with monkeypatch.context() as patch:
        patch.setattr(examples, "draw_example", fail)
        with pytest.raises(KeyboardInterrupt):
            prepare.prepare(str(tmp_path), 16, num_train=4, num_validation=0)
    assert not list(tmp_path.rglob("features.json"))
    _, written = prepare.prepare(str(tmp_path), 16, num_train=4, num_validation=0)
    assert written


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(image_size=8), "image_size must be from 16"),
        (dict(num_train=0), "num_train must be >= 1"),
        (dict(num_validation=-1), "num_validation must be >= 0"),
        (dict(max_shapes=5), "max_shapes must be from 1 to 4, got 5"),
        (dict(seed=-1), "seed must be >= 0"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        prepare.prepare(str(tmp_path), **arguments)


def test_preparing_needs_no_tensorflow(tmp_path):
    code = (
        "import sys\n"
        "from ldm_jax.data.shapes import prepare\n"
        f"prepare.prepare({str(tmp_path)!r}, 16, num_train=2, num_validation=0)\n"
        "assert not {'tensorflow', 'jax'} & set(sys.modules)\n"
    )
    process = [sys.executable, "-c", code]
    result = subprocess.run(
        process, capture_output=True, text=True, env=os.environ | PATH
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "" and result.stderr == ""
