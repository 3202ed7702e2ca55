"""What settings beside samples say of their pixels, where they can be read and not."""

import builtins
import errno
import io
import json
import os
import tarfile

import numpy as np
import pytest
from PIL import Image

from ldm_jax.checkpoint.best import Best, read_best, write_best
from ldm_jax.errors import ConfigError, DataError, Unreachable
from ldm_jax.evaluation.as_they_are.contents import contents_of
from ldm_jax.evaluation.as_they_are.shards import explaining_shards
from ldm_jax.evaluation.image_sets import open_images
from ldm_jax.evaluation.resuming import Saved
from ldm_jax.images import RGB, Pixels, encode_image, suffix_of, write_png
from ldm_jax.metrics.reference import ReferenceStatistics
from ldm_jax.sampling.sample_pixels import pixels_beside, settings_of
from ldm_jax.sampling.settings import claim
from ldm_jax.weights.files import read_weights, write_weights
from tests.evaluation.test_image_sets import collect, drawn, mesh_of, write_samples

GREY = Pixels("grey", value_range=(0, 200))


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[" * 99999, None])
def test_settings_that_cannot_be_read_are_not_taken_for_none(tmp_path, content):
    samples = write_samples(tmp_path / "run", GREY, drawn(GREY))
    path = tmp_path / "run" / "settings.json"
    path.unlink()
    path.mkdir() if content is None else path.write_bytes(content)
    message = "run/settings.json cannot be read .* repair it, or, .* to another folder"
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
    weights = tmp_path / "x.safetensors"
    write_weights(weights, {"a": np.zeros(3, np.float32)})
    write_best(tmp_path, Best(5, "precision", 0.2, "higher"))

    def stale(path, *args, **kwargs):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)

    asked = [
        (os, "open", lambda: pixels_beside(samples), "settings.json"),
        (os, "open", lambda: claim(tmp_path, {}), "settings.json"),
        (builtins, "open", lambda: contents_of(3, lambda _: str(state)), "state.npz"),
        (np, "load", lambda: Saved(state, {}, 1).load(), "state.npz"),
        (np, "load", lambda: ReferenceStatistics.load(state), "state.npz"),
        (builtins, "open", lambda: read_weights(weights), "x.safetensors"),
        (io, "open", lambda: read_best(tmp_path), "best.json"),
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


def write_shards(samples, pixels, images):
    """The same samples as ldm-sample writes them with --output=tar."""
    for path in samples.iterdir():
        path.unlink()
    with tarfile.open(samples / "000000-000002.tar", "w") as archive:
        for number, image in enumerate(images):
            data = encode_image(image, pixels)
            info = tarfile.TarInfo(f"{number:06d}{suffix_of(pixels)}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize(
    "pixels", [Pixels(), GREY, Pixels(5), Pixels("rgb", "float32", value_range=(0, 1))]
)
def test_shards_of_samples_are_read_or_it_is_said_how(tmp_path, pixels):
    images = drawn(pixels)
    samples = write_samples(tmp_path, pixels, images)
    write_shards(samples, pixels, images)
    found = open_images(samples, mesh_of(1), 4, image_size=16)
    expected = pixels.shown(images).astype(int)
    assert abs(collect(found)[0] - expected).max() <= 1
    with pytest.raises(ConfigError, match="has shards, as 000000-.*give --image_size"):
        open_images(samples, mesh_of(1), 4)
    (samples / "000000-000002.tar").rename(samples / "000000-000002.npz")
    for size in (None, 16):
        advice = "samples.npz, which .* --npz" if pixels.is_rgb else "--output=png"
        message = f"--images: .*no images .* has shards, as .*npz: .*{advice}"
        with pytest.raises(ConfigError, match=message):
            open_images(samples, mesh_of(1), 4, image_size=size)


@pytest.mark.parametrize("size", [None, 16])
def test_every_image_of_a_set_is_looked_at(tmp_path, size, caplog):
    for number, image in enumerate(drawn(Pixels(), 12)):
        write_png(tmp_path / f"{number:02}.png", image)
    deep = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    write_png(tmp_path / "05.png", deep)
    found = collect(open_images(tmp_path, mesh_of(1), 4, image_size=size))[0]
    assert len(found) == 12
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert "05.png has 16 bits, and no settings.json" in said
    assert "05.png has 16 bits and" in said and "00.png has 8: each fills" in said
    # Of floats nothing says the range, wherever they lie.
    Image.fromarray(deep.astype(np.float32)).save(tmp_path / "10.tif")
    for skip in (False, True):
        with pytest.raises(ConfigError, match="nothing says which values of .*10.tif"):
            options = {"image_size": size, "skip_unreadable": skip}
            collect(open_images(tmp_path, mesh_of(1), 4, **options))


@pytest.mark.parametrize("size", [None, 16])
def test_folders_that_cannot_be_listed_are_no_silent_loss(
    tmp_path, size, monkeypatch, caplog
):
    for number, image in enumerate(drawn(Pixels(), 6)):
        write_png(tmp_path / f"{number % 2}" / f"{number}.png", image)
    scan = os.scandir

    def scandir(path):
        if str(path).endswith("/1"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    message = "/1:? cannot be listed: Permission denied.* with --skip_unreadable"
    with pytest.raises(DataError, match=message):
        open_images(tmp_path, mesh_of(1), 4, image_size=size)
    options = {"image_size": size, "skip_unreadable": True}
    found = open_images(tmp_path, mesh_of(1), 4, **options)
    assert found.count == 3
    assert "cannot be listed: Permission denied" in caplog.text
    (place,) = found.left_out
    assert "/1: cannot be listed: Permission denied" in place.replace("/1::", "/1:")


@pytest.mark.parametrize("size", [None, 16])
def test_a_set_is_what_its_first_image_is_that_can_be_read(tmp_path, size):
    pixels = Pixels("grey", "uint16")
    for number, image in enumerate(drawn(pixels)):
        write_png(tmp_path / f"{number}.png", image)
    (tmp_path / "0.png").write_bytes(b"none")
    options = {"image_size": size, "skip_unreadable": True}
    found = open_images(tmp_path, mesh_of(1), 4, **options)
    assert found.record["preprocessing"]["values"] == pixels.describe_range()


def test_shards_are_not_looked_for_where_nothing_may_be_listed(tmp_path):
    with pytest.raises(ConfigError, match="--images: it is so"):
        with explaining_shards(str(tmp_path / "none"), RGB, "--images", None):
            raise ConfigError("data: it is so")
