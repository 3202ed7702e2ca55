"""guided-diffusion's npz: images in and out as a stream."""

import errno
import os
import tracemalloc

import numpy as np
import pytest

from ldm_jax.errors import ConfigError, DataError, DiskError
from ldm_jax.metrics.adm_npz import ImageFile, StoredImages


def images(count=11, side=8):
    rng = np.random.default_rng(count)
    return rng.integers(0, 256, (count, side, side + 2, 3), np.uint8)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_images_are_read_in_blocks(tmp_path, save):
    array = images()
    save(tmp_path / "a.npz", arr_0=array, arr_1=np.arange(11))
    stored = StoredImages(tmp_path / "a.npz")
    assert stored.shape == array.shape
    for size, start in ((4, 0), (4, 8), (20, 3)):
        blocks = list(stored.blocks(size, start))
        assert all(len(block) == size for block in blocks[:-1])
        np.testing.assert_array_equal(np.concatenate(blocks), array[start:])
    # Other images have another fingerprint, the same ones the same.
    save(tmp_path / "b.npz", arr_0=array)
    save(tmp_path / "c.npz", arr_0=array[::-1])
    assert StoredImages(tmp_path / "b.npz").fingerprint == stored.fingerprint
    assert StoredImages(tmp_path / "c.npz").fingerprint != stored.fingerprint


def test_only_a_block_is_in_memory(tmp_path):
    array = images(200, 64)
    np.savez_compressed(tmp_path / "a.npz", arr_0=array)
    tracemalloc.start()
    count = sum(len(block) for block in StoredImages(tmp_path / "a.npz").blocks(4))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 200 and peak < array.nbytes / 4


def test_what_is_no_such_file_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    with pytest.raises(ConfigError, match="No such file"):
        StoredImages(path)
    path.write_bytes(b"no zip")
    with pytest.raises(ConfigError, match="is no npz"):
        StoredImages(path)
    np.savez(path, images=images())
    with pytest.raises(ConfigError, match="holds images and no arr_0"):
        StoredImages(path)
    np.savez(path, arr_0=images().astype(np.float32))
    with pytest.raises(ConfigError, match=r"float32 \[11, 8, 10, 3\]: give uint8"):
        StoredImages(path)
    np.savez(path, arr_0=np.asfortranarray(images()))
    with pytest.raises(ConfigError, match="Fortran order"):
        StoredImages(path)


def test_a_damaged_file_is_found_out(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, arr_0=images(40, 32))
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="is damaged or cut short"):
        list(StoredImages(path).blocks(16))


def test_images_are_collected_also_by_a_run_that_was_cut(tmp_path):
    path, array = tmp_path / "out" / "samples.npz", images()
    first = ImageFile(path, array.shape)
    assert not first.is_begun()
    first.open(again=True)
    first.write(0, array[:4])
    first.flush()
    del first
    # Of another set it is not touched.
    assert not ImageFile(path, (3, 8, 10, 3)).is_begun()
    second = ImageFile(path, array.shape)
    assert second.is_begun()
    second.open(again=False)
    second.write(4, array[4:])
    assert not path.exists()
    for _ in range(2):
        second.finish(11, arr_1=np.arange(11))
        found = np.load(path)
        np.testing.assert_array_equal(found["arr_0"], array)
        np.testing.assert_array_equal(found["arr_1"], np.arange(11))
        # It can be made again until the images are removed.
        assert second.is_begun()
        second.open(again=False)
    second.remove()
    assert [each.name for each in path.parent.iterdir()] == ["samples.npz"]


def test_collecting_without_room_and_without_a_header(tmp_path, monkeypatch):
    file = ImageFile(tmp_path / "samples.npz", (3, 8, 8, 3))
    part = tmp_path / "samples.partial.npy"
    for left in (b"", b"\x93NUMPY\x01", b"anything"):
        part.write_bytes(left)
        assert not file.is_begun()

    def full(descriptor, start, count):
        assert count == part.stat().st_size > 3 * 8 * 8 * 3
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DiskError, match="samples.partial.npy: No space left"):
        file.open(again=True)
    assert not part.exists()
