"""What settings beside samples say of their pixels, where they can be read and not."""

import builtins
import errno
import json
import os

import numpy as np
import pytest

from ldm_jax.errors import ConfigError, Unreachable
from ldm_jax.evaluation.as_they_are.contents import contents_of
from ldm_jax.evaluation.image_sets import open_images
from ldm_jax.evaluation.resuming import Saved
from ldm_jax.images import Pixels
from ldm_jax.metrics.reference import ReferenceStatistics
from ldm_jax.sampling.sample_pixels import pixels_beside, settings_of
from ldm_jax.sampling.settings import claim
from tests.evaluation.test_image_sets import collect, drawn, mesh_of, write_samples

GREY = Pixels("grey", value_range=(0, 200))


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[" * 99999, None])
def test_settings_that_cannot_be_read_are_not_taken_for_none(tmp_path, content):
    samples = write_samples(tmp_path / "run", GREY, drawn(GREY))
    path = tmp_path / "run" / "settings.json"
    path.unlink()
    path.mkdir() if content is None else path.write_bytes(content)
    message = "run/settings.json cannot be read .* mend it, or, .* to another folder"
    with pytest.raises(ConfigError, match=message):
        open_images(samples, mesh_of(1), 4)
    # Also of a shard, beside which no settings lie.
    with pytest.raises(ConfigError, match=message):
        pixels_beside(samples / "000000-000002.npz")


@pytest.mark.parametrize("said", [{"chanels": "grey"}, {"value_range": [1]}, "grey"])
def test_settings_that_say_what_no_pixels_are(tmp_path, said):
    path = write_samples(tmp_path, GREY, drawn(GREY)).parent / "settings.json"
    path.write_text(json.dumps({"conditions": {}, "options": {}, "pixels": said}))
    with pytest.raises(ConfigError, match="settings.json: pixels: "):
        open_images(tmp_path / "samples", mesh_of(1), 4)


def test_silence_is_neither_damage_nor_absence(tmp_path, monkeypatch):
    samples = write_samples(tmp_path, GREY, drawn(GREY))
    state = tmp_path / "state.npz"
    np.savez(state, record=np.array("{}"))

    def stale(path, *args, **kwargs):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)

    asked = [
        (os, "open", lambda: pixels_beside(samples), "settings.json"),
        (os, "open", lambda: claim(tmp_path, {}), "settings.json"),
        (builtins, "open", lambda: contents_of(3, lambda _: str(state)), "state.npz"),
        (np, "load", lambda: Saved(state, {}, 1).load(), "state.npz"),
        (np, "load", lambda: ReferenceStatistics.load(state), "state.npz"),
    ]
    for module, name, ask, where in asked:
        with monkeypatch.context() as patch:
            patch.setattr(module, name, stale)
            with pytest.raises(Unreachable, match=f"{where}: Stale file handle"):
                ask()


def older(samples):
    """Takes away what older versions did not write."""
    path = samples.parent / "settings.json"
    found = json.loads(path.read_text())
    del found["pixels"]
    path.write_text(json.dumps(found))
    return found


@pytest.mark.parametrize("size", [None, 16])
@pytest.mark.parametrize(
    "pixels",
    [GREY, Pixels("rgba"), Pixels("grey", "uint16"), Pixels(5)],
    ids=["grey", "rgba", "16 bits", "channels"],
)
def test_older_samples_of_other_images_are_not_taken_for_photos(tmp_path, pixels, size):
    """Until they are gone on with, which says what they are."""
    images = drawn(pixels)
    samples = write_samples(tmp_path, pixels, images)
    settings = older(samples)
    message = "0000.(png|npy) is not RGB .*settings.json does not say .* once more"
    with pytest.raises(ConfigError, match=message):
        open_images(samples, mesh_of(1), 4, image_size=size, skip_unreadable=True)
    claim(tmp_path, settings | settings_of(pixels), follows=("pixels",))
    found = open_images(samples, mesh_of(1), 4)
    expected = pixels.shown(images).astype(int)
    assert abs(collect(found)[0] - expected).max() <= 1


def test_older_samples_in_rgb_are_read_and_named(tmp_path, caplog):
    images = drawn(Pixels())
    samples = write_samples(tmp_path, Pixels(), images)
    open_images(samples, mesh_of(1), 4)
    assert not caplog.records
    older(samples)
    found = open_images(samples, mesh_of(1), 4)
    np.testing.assert_array_equal(collect(found)[0], images)
    (said,) = [record.getMessage() for record in caplog.records]
    assert "settings.json is of a version that did not say" in said
