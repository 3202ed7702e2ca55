"""Scenes as files say what the data set says."""

import numpy as np
import pytest
from PIL import Image

from ldm_jax.data.folder import FolderSource
from ldm_jax.data.modalities import MODALITIES, keys_of
from ldm_jax.data.shapes import examples, files, scenes
from ldm_jax.errors import ConfigError
from tests.runs import command, finish


def test_files_say_what_the_data_set_says(tmp_path):
    flags = f"--outdir={tmp_path}", "--num_images=3", "--image_size=16"
    status, output = finish(command("ldm_jax.data.shapes.files", *flags))
    assert status == 0 and "wrote 3 images" in output
    names = scenes.CLASS_NAMES
    rows = [name for name, row in MODALITIES.items() if row.suffix]
    keys = tuple(key for name in rows for key in keys_of(name))
    source = FolderSource(str(tmp_path), "all", keys=keys, box_names=names)
    assert len(source) == 3
    for index in range(3):
        found, true = source[index], examples.draw_example(0, "validation", index, 16)
        assert found["caption"] == true["caption"]
        np.testing.assert_array_equal(found["box_labels"], true["box_labels"])
        np.testing.assert_allclose(found["boxes"], true["boxes"], atol=1e-4)
        with Image.open(tmp_path / f"{index:05d}.png") as image:
            np.testing.assert_array_equal(image, true["image"])
        for key in ("segmentation", "depth"):
            with Image.open(tmp_path / f"{index:05d}.{key}.png") as image:
                np.testing.assert_array_equal(image, true[key])
        with Image.open(tmp_path / f"{index:05d}.low_res.png") as image:
            assert image.size == (4, 4)
        with Image.open(tmp_path / f"{index:05d}.mask.png") as image:
            assert set(np.unique(image)) == {0, 255}


@pytest.mark.parametrize(
    "wrong",
    [
        dict(num_images=0),
        dict(image_size=18),
        dict(factor=99),
        dict(factor=0),
        dict(max_shapes=9),
    ],
)
def test_what_cannot_be_written_is_refused(wrong, tmp_path):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        files.write(tmp_path, **wrong)


def test_the_command_refuses_in_one_line(tmp_path):
    flags = f"--outdir={tmp_path}", "--max_shapes=9"
    status, output = finish(command("ldm_jax.data.shapes.files", *flags))
    assert status == 2 and output.startswith("error: --max_shapes must be from 1 to 4")
    assert output.count("\n") == 1
