"""What a run writes: the contact sheet, its settings; what may be in the way."""

import json
import os

import numpy as np
import pytest

from ldm_jax.errors import ConfigError, DecodeError, DiskError
from ldm_jax.files import check_outdir
from ldm_jax.images import Pixels, write_image, write_png
from ldm_jax.sampling.output import (
    Entry,
    make_contact_sheet,
    write_grid,
)
from ldm_jax.sampling.sample_files import Files
from ldm_jax.sampling.settings import claim
from tests.sampling.common import make_bare


def test_a_contact_sheet_holds_every_image_and_writes_below():
    image = np.full((20, 30, 3), 7, np.uint8)
    entries = [
        Entry([("depth", image), ("sample", image)], "a red star " * k) for k in (0, 9)
    ]
    sheet = make_contact_sheet(entries)
    assert (sheet == 7).all(axis=-1).sum() == 4 * 20 * 30
    taller = make_contact_sheet([Entry(entry.images, "") for entry in entries])
    assert sheet.shape[0] > taller.shape[0] and sheet.shape[1] == taller.shape[1]


def test_a_folder_that_is_in_the_way_of_nothing_is_not_made(tmp_path, monkeypatch):
    check_outdir(tmp_path)
    check_outdir(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("file", "file/a/b", "link", "link/a"):
        with pytest.raises(ConfigError, match=f"--outdir=.*{name}: .* is no folder"):
            check_outdir(tmp_path / name)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(DiskError, match="may not be written to: give another"):
        check_outdir(tmp_path / "a")


def test_what_differs_between_settings_is_named(tmp_path):
    settings = {"seed": 0, "options": {"eta": 0.0, "scale": {"a": 1.0}}, "size": (1, 2)}
    claim(tmp_path, settings)
    claim(tmp_path, settings)
    for change, message in (
        ({"seed": 1}, "seed: 0 there, 1 here"),
        ({"options": {"eta": 0.0}}, "options.scale.a: 1.0 there, None here"),
        ({"size": (1, 3)}, r"size: \[1, 2\] there, \[1, 3\] here"),
    ):
        with pytest.raises(ConfigError, match=message + ".; use another"):
            claim(tmp_path, settings | change)


def test_what_follows_from_the_rest_is_added_to_older_settings(tmp_path):
    older = {"seed": 0, "checkpoint": "a"}
    claim(tmp_path, older)
    pixels = {"pixels": {"channels": "grey", "value_range": [0, 4095]}}
    with pytest.raises(ConfigError, match="seed: 0 there, 1 here"):
        claim(tmp_path, older | pixels | {"seed": 1}, follows=("pixels",))
    with pytest.raises(ConfigError, match="pixels.channels: None there, grey here"):
        claim(tmp_path, older | pixels)
    for _ in range(2):
        claim(tmp_path, older | pixels, follows=("pixels",))
        assert json.loads((tmp_path / "settings.json").read_text()) == older | pixels
    with pytest.raises(ConfigError, match="pixels.channels: grey there, rgb here"):
        claim(tmp_path, older | {"pixels": {"channels": "rgb"}}, follows=("pixels",))


def test_samples_are_not_gone_on_with_in_files_of_another_kind(tmp_path):
    """Of narrow ranges older versions wrote PNG."""
    pixels = Pixels("grey", value_range=(0, 1))
    store = Files(tmp_path, *make_bare(3, pixels), 1)
    write_image(store.path_of(0), np.zeros((8, 8, 1), np.uint8), pixels)
    # No samples, whoever has put them there.
    for name in ("preview.png", "clip_features.png", "1.png"):
        (store.folder / name).touch()
    assert store.missing(0, 1) == (3, [[1, 2]])
    write_png(store.folder / "000001.png", np.zeros((8, 8), np.uint8))
    with pytest.raises(ConfigError, match="as .png .000001.png., .* as .npy: use anot"):
        store.missing(0, 1)


@pytest.mark.parametrize("content", [b"[1]", b"{", b"\xff", b"[" * 99999, None])
def test_settings_that_cannot_be_read_are_an_error(tmp_path, content):
    path = tmp_path / "settings.json"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(ConfigError, match="json does not say of which settings the"):
        claim(tmp_path, {"seed": 0})


@pytest.mark.parametrize("damaged", [True, False])
def test_a_sample_that_is_of_no_use_is_named(tmp_path, damaged):
    store = Files(tmp_path, *make_bare(3), 1)
    for k, side in enumerate((8, 8, 9)):
        write_png(store.path_of(k), np.zeros((side, side, 3), np.uint8))
    if damaged:
        store.path_of(2).write_bytes(b"none")
    message = "000002.png is damaged" if damaged else "000002.png is 9 x 9 pixels and"
    with pytest.raises(DecodeError, match=f"{message} .*draws it again"):
        write_grid(tmp_path, store)
