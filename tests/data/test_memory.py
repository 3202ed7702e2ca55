"""Images of any size that fit the limit are read; others are refused before that."""

import contextlib
import io
import struct
import time
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from ldm_jax.errors import ConfigError, DecodeError
from ldm_jax.images import (
    decode,
    decode_grey,
    decode_plane,
    memory_limit,
    read_image,
    size_of,
)
from ldm_jax.images.memory import bytes_to_load, without_pillows_limit
from tests.data.common import encode, make_image

PICTURE = Image.fromarray(make_image(40, 30))


def png_of(width, height, depth=8, color=0):
    """A PNG whose header announces a size, without the pixels."""

    def chunk(kind, data):
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "data",
    [png_of(60000, 60000), png_of(30000, 30000, 16), png_of(20000, 20000, 8, 6)],
    ids=["grey", "16 bits", "RGBA"],
)
@pytest.mark.parametrize("read", [decode, decode_grey, decode_plane, read_image])
def test_what_is_too_large_is_refused_before_it_is_read(read, data):
    tracemalloc.start()
    start = time.perf_counter()
    with pytest.raises(DecodeError, match="the limit is 1 GB.*max_image_gb|channel"):
        read(data)
    assert time.perf_counter() - start < 1
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def tiff_of(tags):
    """A compressed TIFF of 40 x 30 grey pixels, without the pixels."""
    made = TiffImagePlugin.ImageFileDirectory_v2()
    usual = {256: 40, 257: 30, 258: 8, 259: 8, 262: 1, 277: 1}
    for tag, value in (usual | tags).items():
        made[tag] = value
    return b"II*\0" + struct.pack("<I", 8) + made.tobytes(8)


@pytest.mark.parametrize(
    "tags, part",
    [
        ({322: 40000, 323: 50000, 324: 200, 325: 10}, 2_000_000_000),
        ({278: 2**32 - 1, 273: 200, 279: 10}, 40 * 30),
        ({278: 8, 273: [200] * 4, 279: [10] * 4}, 40 * 8),
    ],
    ids=["tile", "one strip", "strips"],
)
def test_what_a_tiff_is_decoded_into_counts(tags, part):
    with Image.open(io.BytesIO(tiff_of(tags))) as image:
        assert bytes_to_load(image, image.size) == 40 * 30 + part
    if part > 1e9:
        with pytest.raises(DecodeError, match="take 2 GB to read, and the limit is 1"):
            decode(tiff_of(tags))


def test_the_limit_can_be_set():
    data = encode(PICTURE)
    with memory_limit(1e-6), pytest.raises(DecodeError, match="40 x 30 pixels"):
        decode(data)
    with memory_limit(None):
        assert decode(data).size == (40, 30)
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="max_image_gb must be"):
            memory_limit(wrong)


def test_pillows_own_limit_does_not_count_and_stays(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    data = encode(PICTURE)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(data))
    np.testing.assert_array_equal(read_image(data), np.asarray(PICTURE))
    assert Image.MAX_IMAGE_PIXELS == 100
    # Set while another thread reads.
    with without_pillows_limit():
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 90)
        np.testing.assert_array_equal(read_image(data), np.asarray(PICTURE))
    assert Image.MAX_IMAGE_PIXELS == 90


@pytest.mark.parametrize("ends_first", ["reading", "setting"])
def test_a_limit_set_and_put_back_while_another_thread_reads(monkeypatch, ends_first):
    """Neither the one of that time nor none is left behind."""
    before, data = Image.MAX_IMAGE_PIXELS, encode(PICTURE)
    reading = contextlib.ExitStack()
    reading.enter_context(without_pillows_limit())
    with monkeypatch.context() as setting:
        setting.setattr(Image, "MAX_IMAGE_PIXELS", 8)
        np.testing.assert_array_equal(read_image(data), np.asarray(PICTURE))
        assert Image.MAX_IMAGE_PIXELS == 8
        if ends_first == "reading":
            reading.close()
    reading.close()
    # What was put back was none, where the reading had ended: known at the next image.
    np.testing.assert_array_equal(read_image(data), np.asarray(PICTURE))
    assert Image.MAX_IMAGE_PIXELS == before


def test_a_jpeg_counts_at_the_fraction_at_which_it_is_read():
    image = Image.fromarray(make_image(1600, 1200))
    plain, progressive = (encode(image, "JPEG", progressive=p) for p in (False, True))
    with memory_limit(0.002):
        assert min(decode(plain, 64).size) >= 128
        for data, side in ((plain, None), (progressive, 64)):
            with pytest.raises(DecodeError, match="1600 x 1200 pixels"):
                decode(data, side)


def modes():
    grey = PICTURE.convert("L")
    values = np.asarray(grey).astype(np.int32)
    yield "RGB", PICTURE, {}
    yield "L", grey, {}
    yield "1", grey.convert("1"), {}
    yield "P", PICTURE.quantize(16), {"transparency": 3}
    yield "L with a transparent value", grey, {"transparency": 90}
    yield "RGBA", Image.merge("RGBA", (*PICTURE.split(), grey)), {}
    yield "LA", Image.merge("LA", (grey, grey)), {}
    yield "CMYK", PICTURE.convert("CMYK"), {"format": "TIFF"}
    yield "I;16", Image.fromarray((values * 200).astype(np.uint16)), {}
    yield "I", Image.fromarray(values * 1000 - 5), {"format": "TIFF"}
    yield "F", Image.fromarray(values.astype(np.float32) / 255), {"format": "TIFF"}


@pytest.mark.parametrize(("name", "image", "options"), list(modes()))
@pytest.mark.parametrize("orientation", [1, 6])
def test_bands_give_what_the_whole_gives(
    monkeypatch, name, image, options, orientation
):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(image, **{"format": "PNG", "exif": exif} | options)
    whole = np.asarray(decode(data)), decode_grey(data)
    assert size_of(data) == whole[0].shape[1::-1]
    monkeypatch.setattr("ldm_jax.images.decoding._BAND", 7 * 40)
    np.testing.assert_array_equal(np.asarray(decode(data)), whole[0])
    np.testing.assert_array_equal(decode_grey(data), whole[1])
    monkeypatch.setattr("ldm_jax.images.decoding._HUGE", 100)
    small = decode(data, 5)
    assert min(small.size) == 10
    expected = Image.fromarray(whole[0]).reduce(3)
    assert np.abs(np.asarray(small, int) - np.asarray(expected, int)).max() <= 1


def test_formats_that_start_other_programs_are_not_read():
    buffer = io.BytesIO()
    PICTURE.save(buffer, "EPS")
    with pytest.raises(DecodeError, match="cannot identify image file"):
        decode(buffer.getvalue())


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_a_mask_painted_white_on_transparent_is_what_is_painted(mode):
    alpha = np.zeros((6, 8), np.uint8)
    alpha[2:4, 3:7] = 255
    white = np.full((6, 8), 255, np.uint8)
    if mode == "P":
        image = Image.fromarray(alpha // 255)
        image = image.convert("P")
        image.putpalette([255] * 6)
        data = encode(image, transparency=0)
    else:
        data = encode(np.dstack([white] * (len(mode) - 1) + [alpha]))
    np.testing.assert_array_equal(decode_grey(data), alpha)
