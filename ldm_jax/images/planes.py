"""Images of any number of channels and bits, as floats: `.npy`, pages of TIFF, PNG.

Pillow reads grey of any depth, and 8-bit colour; it would silently reduce 16-bit colour
to 8 bits. That, and TIFF with channels that it does not support, is read with
imagecodecs and tifffile, an extra.
"""

import io
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from ldm_jax.annotations import Float
from ldm_jax.errors import DecodeError
from ldm_jax.images.decoding import (
    SIXTEEN,
    decode,
    guarded,
    load_image,
    open_image,
    upright,
)
from ldm_jax.images.memory import require_memory
from ldm_jax.images.pixels import KINDS, RGB, Pixels
from ldm_jax.images.png_orientation import SIGNATURE as PNG
from ldm_jax.images.png_orientation import orientation_of_png
from ldm_jax.reading import parse_array, read_file

NPY = b"\x93NUMPY"

# Pillow's modes of the kinds, for 8 bits.
_MODES = {"grey": "L", "rgb": "RGB", "rgba": "RGBA"}

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

# Colour types of PNG with more than one channel: RGB, grey and alpha, RGB and alpha.
_PNG_COLOURS = (2, 4, 6)

# Weights of red, green and blue in grey, as in Pillow (ITU-R BT.601).
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def is_array(data: Any) -> bool:
    """Returns whether data are an array, not an image in a format that Pillow reads.

    Args:
      data: Encoded bytes, a path, or an array.

    Returns:
      Whether they are the bytes or the path of `.npy`, or an array other than uint8 of
      1, 3 or 4 channels.
    """
    if isinstance(data, np.ndarray):
        channels = data.shape[2:] or (1,)
        return data.dtype != np.uint8 or channels not in ((1,), (3,), (4,))
    if isinstance(data, bytes):
        return data.startswith(NPY)
    return str(data).lower().endswith(".npy")


def decode_pixels(
    data: Any, least_side: int | None = None, pixels: Pixels = RGB
) -> Image.Image | Float[np.ndarray, "H W channels"]:
    """Decodes an image to the channels of a run, to be cropped and resized.

    Args:
      data: As for `decode`, or an array of any type and number of channels.
      least_side: As for `decode`.
      pixels: Format of the result.

    Returns:
      PIL image of mode L, RGB or RGBA if that loses nothing, else float32 [H, W, C] in
      [-1, 1].

    Raises:
      DecodeError: See `decode` and `decode_planes`.
    """
    if pixels.plain and not is_array(data):
        return decode(data, least_side, _MODES[pixels.kind])
    return decode_planes(data, pixels)


def decode_planes(data: Any, pixels: Pixels) -> Float[np.ndarray, "H W channels"]:
    """Decodes an image of any number of channels and bits.

    Args:
      data: Encoded bytes, a path, or an array [H, W] or [H, W, C].
      pixels: Channels of the result, and the values that are mapped to -1 and 1.

    Returns:
      float32 [H, W, C] in [-1, 1].

    Raises:
      DecodeError: If it cannot be read, has another number of channels or values that
        are not finite, or if the range of its values is unknown.
    """
    return guarded(_decode, data, pixels)


def _decode(data, pixels):
    if not isinstance(data, np.ndarray | bytes):
        data = read_file(data, require_memory)
    values = _read(data, pixels)
    if values.dtype.kind not in "buif":
        raise DecodeError(f"an image is of numbers, got {values.dtype}")
    height, width, count = values.shape
    if not values.size:
        raise DecodeError(f"there are no pixels: {height} x {width} x {count}")
    what = f"{height} x {width} pixels of {count} channels"
    require_memory(values.nbytes + 12 * values.size, what)
    # Checked before the conversion: most mistakes are of this kind.
    _check_count(count, pixels)
    return _to_kind(_to_unit(values, pixels.value_range), pixels.kind)


def _read(data, pixels):
    """Reads the file's own values, [H, W, C]."""
    if isinstance(data, np.ndarray):
        return _with_channels(data)
    if data.startswith(NPY):
        return _with_channels(parse_array(data))
    if data.startswith(PNG) and data[24:25] == b"\x10" and data[25] in _PNG_COLOURS:
        return _read_deep_png(data)
    most = 1 if pixels.kind else pixels.count + 1
    if data.startswith(TIFF) and not _pillow_reads(data):
        return _read_tiff(data)
    return _read_pages(data, most)


def _with_channels(array):
    if array.ndim not in (2, 3):
        raise DecodeError(
            f"an array [height, width] or [height, width, channels] is expected, got "
            f"{list(array.shape)}"
        )
    return array if array.ndim == 3 else array[..., None]


def _read_pages(data, most):
    """Reads the bands of the first pages, at most `most` pages."""
    found = []
    with open_image(data) as image:
        for page in range(most):
            try:
                image.seek(page)
            except EOFError:
                break
            load_image(image)
            found.append(_bands(image))
            if found[-1].shape[:2] != found[0].shape[:2]:
                sizes = [f"{f.shape[0]} x {f.shape[1]}" for f in (found[0], found[-1])]
                raise DecodeError(
                    f"its pages differ in size: {sizes[0]} and {sizes[1]} pixels"
                )
    return found[0] if len(found) == 1 else np.concatenate(found, axis=2)


def _bands(image):
    """Pixels [H, W, C] of a page, transposed by its Exif data, palettes as colours."""
    page = image
    if page.mode in ("P", "PA", "CMYK", "YCbCr", "LAB", "HSV", "RGBX"):
        clear = page.mode == "PA" or "transparency" in page.info
        page = page.convert("RGBA" if clear else "RGB")
    array = np.asarray(upright(image, page))
    if image.mode == "I" and image.format in SIXTEEN:
        array = array.astype(np.uint16)
    return _with_channels(array)


def _pillow_reads(data):
    """Whether Pillow reads a TIFF without loss."""
    try:
        with open_image(data) as image:
            bits = image.tag_v2.get(258, (1,))
            return len(bits) == 1 or max(bits) <= 8
    # It does not support other numbers of channels.
    except Exception:
        return False


def _extra(name):
    try:
        return __import__(name)
    except ImportError as error:
        raise DecodeError(
            "colour of 16 bits, or TIFF with such channels, needs imagecodecs and "
            "tifffile: pip install 'ldm-jax[deep_images]', or save the array as .npy"
        ) from error


def _read_deep_png(data):
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    bands = {2: 3, 4: 2, 6: 4}[data[25]]
    require_memory(4 * width * height * bands, f"{width} x {height} pixels of 16 bits")
    array = _with_channels(_extra("imagecodecs").png_decode(data))
    return _turned(
        array, orientation_of_png(lambda at, n: data[at : at + n], len(data))
    )


def _read_tiff(data):
    tifffile = _extra("tifffile")
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        series = file.series[0]
        require_memory(series.nbytes, f"{series.shape} of {series.dtype}")
        array, axes = series.asarray(), series.axes
        orientation = file.pages.first.tags.valueof(ExifTags.Base.Orientation, 1)
    if array.ndim == 3 and axes[-2:] == "YX":
        # Channels are stored as pages, or one after the other.
        array = np.moveaxis(array, 0, -1)
    return _turned(_with_channels(array), orientation)


def _turned(array, orientation):
    """Transposes pixels [H, W, C] by their Exif orientation, as `upright` does."""
    turns = {
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, 3),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90,
    }
    if orientation not in turns:
        return array
    return np.ascontiguousarray(turns[orientation](array))


def _check_count(count, pixels):
    if pixels.kind is None and count != pixels.count:
        raise DecodeError(
            f"it has {count} {'channel' if count == 1 else 'channels'} and "
            f"data.channels={pixels.count}: set data.channels={count}, or convert it"
        )
    if pixels.kind is not None and count not in (1, 2, 3, 4):
        raise DecodeError(
            f"it has {count} channels and data.channels={pixels.kind}: set "
            f"data.channels={count} to take them as they are, or convert it"
        )


def _to_unit(values, value_range):
    """Maps the values of a file to float32 in [-1, 1]."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        row, column, channel = np.argwhere(~np.isfinite(values))[0]
        raise DecodeError(
            f"it holds {values[row, column, channel]} at row {row}, column {column}, "
            f"channel {channel}: all numbers must be finite"
        )
    low, high = value_range or _range_of(values.dtype)
    # Float32 is exact for 16-bit files.
    wide = values.dtype.itemsize > 2 and values.dtype != np.float32
    values = values.astype(np.float64 if wide else np.float32)
    values -= low
    values *= 2 / (high - low)
    values -= 1
    return values.clip(-1, 1).astype(np.float32, copy=False)


def _range_of(dtype):
    """Range of a type if the config sets none."""
    if dtype.kind == "b":
        return 0, 1
    if dtype.kind in "iu" and dtype.itemsize <= 2:
        limits = np.iinfo(dtype)
        return int(limits.min), int(limits.max)
    raise DecodeError(
        f"it holds {dtype}, whose range nothing says: set data.value_range=(lowest, "
        "highest), the values that are black and white"
    )


def _to_kind(values, kind):
    """Converts grey, grey and alpha, RGB or RGBA to the channels of a kind."""
    count = values.shape[-1]
    if kind is None or count == KINDS[kind]:
        return values
    colours, alpha = values, None
    if count in (2, 4):
        colours, alpha = values[..., :-1], values[..., -1:]
    if kind == "rgba":
        colours = np.broadcast_to(colours, (*colours.shape[:2], 3))
        ones = np.ones((*colours.shape[:2], 1), np.float32)
        return np.concatenate([colours, ones if alpha is None else alpha], axis=-1)
    if alpha is not None:
        # On white, as a page.
        colours = (colours - 1) * ((alpha + 1) / 2) + 1
    if kind == "grey":
        return colours if colours.shape[-1] == 1 else (colours @ _LUMA)[..., None]
    return np.ascontiguousarray(np.broadcast_to(colours, (*colours.shape[:2], 3)))
