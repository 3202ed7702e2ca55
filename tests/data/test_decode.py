"""Images of every mode come out as the same RGB image; damaged ones are errors."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

from ldm_jax.errors import DecodeError
from ldm_jax.images import BACKGROUND, decode, decode_plane
from ldm_jax.images.map_decoding import decode_depth
from tests.data.common import encode, make_image

PICTURE = make_image(40, 24)
GREY = np.asarray(Image.fromarray(PICTURE).convert("L"))


def decoded(data, **options):
    image = decode(data, **options)
    assert image.mode == "RGB"
    return np.asarray(image)


def assert_grey(data, expected, tolerance=0):
    result = decoded(data).astype(int)
    assert np.all(result == result[..., :1])
    assert np.abs(result[..., 0] - expected).max() <= tolerance


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_formats(format):
    options = {"lossless": True} if format == "WEBP" else {}
    np.testing.assert_array_equal(decoded(encode(PICTURE, format, **options)), PICTURE)


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr"])
def test_other_color_spaces(mode):
    data = encode(Image.fromarray(PICTURE).convert(mode), "TIFF")
    assert np.abs(decoded(data).astype(int) - PICTURE).max() <= 12


def test_cmyk_jpeg():
    data = encode(Image.fromarray(PICTURE).convert("CMYK"), "JPEG", quality=95)
    assert np.abs(decoded(data).astype(int) - PICTURE).mean() < 4


def test_palette():
    image = Image.fromarray(PICTURE).quantize(256)
    np.testing.assert_array_equal(
        decoded(encode(image)), np.asarray(image.convert("RGB"))
    )


def test_palette_with_a_transparent_color():
    image = Image.new("P", (8, 4), 1)
    image.putpalette([0, 0, 0, 200, 10, 20])
    image.paste(0, (0, 0, 4, 4))
    result = decoded(encode(image, transparency=0))
    assert np.all(result[:, :4] == BACKGROUND) and np.all(
        result[:, 4:] == (200, 10, 20)
    )


def test_transparent_color_of_an_rgb_image():
    array = np.full((4, 8, 3), 90, np.uint8)
    array[:, :4] = (1, 2, 3)
    result = decoded(encode(array, transparency=(1, 2, 3)))
    assert np.all(result[:, :4] == BACKGROUND) and np.all(result[:, 4:] == 90)


def test_alpha_shows_the_background():
    array = np.zeros((2, 3, 4), np.uint8)
    array[..., 3] = [0, 128, 255]
    expected = 255 * (1 - array[..., 3] / 255)
    for data in (encode(array), array):
        assert np.abs(decoded(data).astype(int) - expected[..., None]).max() <= 1


def test_grey_with_alpha():
    image = Image.fromarray(GREY)
    alpha = Image.new("L", image.size, 255)
    alpha.paste(0, (0, 0, 10, 24))
    image = Image.merge("LA", (image, alpha))
    expected = GREY.copy()
    expected[:, :10] = 255
    assert_grey(encode(image), expected)


def test_one_bit():
    assert_grey(encode(Image.fromarray(GREY > 128)), np.where(GREY > 128, 255, 0))


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bit_grey_keeps_its_range(format):
    values = np.linspace(0, 65535, 40 * 24).reshape(24, 40).astype(np.uint16)
    assert_grey(encode(values, format), np.round(values / 257))


def test_sixteen_bits_that_pillow_opens_as_32():
    values = np.array([[0, 1000], [65535, 257]], np.uint16)
    data = b"P5 2 2 65535\n" + values.astype(">u2").tobytes()
    np.testing.assert_array_equal(decode_plane(data), values)
    assert_grey(data, np.round(values / 257))
    depth = decode_depth(data)
    np.testing.assert_allclose(depth[..., 0], values / 65535, rtol=1e-6)


def test_depth_of_an_unknown_range_is_refused():
    values = np.array([[0, 1000], [65535, 257]], np.int32)
    for data in (encode(values, "TIFF"), values, values.astype(np.int64)):
        with pytest.raises(
            DecodeError, match="-bit integers, whose range is not known"
        ):
            decode_depth(data)
    floats = values.astype(np.float32) / 65535
    np.testing.assert_array_equal(decode_depth(encode(floats, "TIFF"))[..., 0], floats)


def test_dark_sixteen_bit_grey_stays_dark():
    assert_grey(encode(np.full((4, 4), 200, np.uint16)), np.full((4, 4), 1))


@pytest.mark.parametrize(
    ("values", "top"),
    [
        (np.array([[0, 51], [255, 0]], np.int32), 255),
        (np.array([[0, 51], [65535, 0]], np.int32), 65535),
        (np.array([[0, 0.2], [1, 0]], np.float32), 1),
        (np.array([[0, 20], [255, 0]], np.float32), 255),
    ],
)
def test_deep_grey_is_scaled_by_the_range_it_fits(values, top):
    assert_grey(encode(values, "TIFF"), np.round(values * (255 / top)))


def test_deep_grey_of_no_known_range_is_stretched():
    values = np.array([[-3, 0], [7, 2]], np.float32)
    assert_grey(encode(values, "TIFF"), np.round((values + 3) * 25.5))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(PICTURE, "PNG", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(decoded(data), np.asarray(upright))
    assert (decode(data).width == 24) == (orientation >= 5)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_spoil_the_image():
    data = encode(PICTURE, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")
    assert decoded(data).shape == PICTURE.shape


def test_first_frame_of_an_animation():
    frames = [Image.fromarray(make_image(16, 16, seed)) for seed in range(3)]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    first = decoded(encode(frames[0], "GIF"))
    np.testing.assert_array_equal(decoded(data), first)


def test_large_jpeg_is_decoded_smaller_but_large_enough():
    data = encode(make_image(1600, 1200), "JPEG")
    small = decode(data, least_side=64)
    assert 128 <= min(small.size) < 300
    full = decode(data, least_side=1000)
    assert full.size == (1600, 1200)
    reference = decode(data).resize(small.size, Image.Resampling.BOX)
    assert np.abs(np.asarray(small, int) - np.asarray(reference, int)).mean() < 2


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 1), (5, 6, 3)])
def test_arrays(shape):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    expected = np.broadcast_to(
        array if array.ndim == 3 else array[..., None], (5, 6, 3)
    )
    np.testing.assert_array_equal(decoded(array), expected)


def broken_files():
    jpeg, png = encode(make_image(200, 150), "JPEG"), encode(make_image(200, 150))
    yield "empty", b""
    yield "text", b"<html>404 not found</html>"
    yield "header only", png[:24]
    for format in ("JPEG", "PNG", "WEBP", "BMP", "TIFF"):
        data = encode(make_image(200, 150), format)
        yield f"truncated {format}", data[: len(data) // 2]
    middle = len(png) // 2
    flipped = bytes(255 - byte for byte in png[middle : middle + 400])
    yield "damaged PNG", png[:middle] + flipped + png[middle + 400 :]
    yield "JPEG without its end", jpeg[: len(jpeg) * 3 // 4]
    # A header that announces 60,000 x 60,000 pixels.
    yield "bomb", png[:16] + struct.pack(">II", 60000, 60000) + png[24:]


@pytest.mark.parametrize(("name", "data"), list(broken_files()))
def test_broken_files_are_errors_that_say_why(name, data):
    with pytest.raises(DecodeError) as error:
        decode(data)
    assert str(error.value) and "\n" not in str(error.value)


def test_missing_file():
    with pytest.raises(DecodeError, match="No such file"):
        decode("/nowhere/image.png")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_planes_keep_their_numbers(dtype):
    plane = np.arange(24, dtype=dtype).reshape(4, 6) * 9
    np.testing.assert_array_equal(decode_plane(encode(plane)), plane)
    np.testing.assert_array_equal(decode_plane(plane[..., None]), plane)


def test_planes_of_a_palette_are_its_indices():
    image = Image.new("P", (4, 2), 3)
    image.putpalette(list(range(30)))
    np.testing.assert_array_equal(decode_plane(encode(image)), np.full((2, 4), 3))


def test_a_colour_image_is_not_a_plane():
    with pytest.raises(DecodeError, match="expected one channel"):
        decode_plane(encode(PICTURE))
