"""Decodes images of any format and mode to RGB, RGBA, or one channel.

Large images are converted in bands, so that no array of their size is in memory besides
the decoded pixels and the result.
"""

import functools
import io
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from ldm_jax.annotations import Shaped
from ldm_jax.errors import DecodeError
from ldm_jax.images.memory import (
    bytes_per_pixel,
    bytes_to_load,
    require_memory,
    without_pillows_limit,
)
from ldm_jax.store import as_path, is_remote

# Colour behind transparent pixels: white, as on a page. In a mask it is black, as only
# what is painted on a transparent layer belongs to the mask.
BACKGROUND, UNPAINTED = (255, 255, 255), (0, 0, 0)

# Supported formats. Pillow knows more, some of which start other programs (EPS).
_FORMATS = "JPEG MPO PNG WEBP BMP DIB GIF TIFF PPM TGA JPEG2000 AVIF".split()

# Images of more pixels are reduced by a whole factor before they are converted, if the
# result is to be much smaller.
_HUGE = 2**26 * 4 // 3

# Pixels that are converted at a time.
_BAND = 2**22

# Possible maximum values of 32-bit grey, by kind of number.
_TOPS = {"F": (1, 255, 65535), "I": (255, 65535)}

# Formats of at most 16 bits that Pillow opens in a 32-bit mode: PPM, and PNG in Pillow
# 10. Pillow scales a PPM to the full range, whatever its header states.
SIXTEEN = ("PNG", "PPM")

_TRANSPARENT = ("RGBA", "LA", "PA", "RGBa", "La")

# Exif orientation -> how to transpose the image.
_BY_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(data: Any, least_side: int | None = None, mode: str = "RGB") -> Image.Image:
    """Decodes an image to RGB, RGBA or grey, of 8 bits.

    Grey of more bits is scaled, not clipped. Transparent pixels are composited on
    white, except in RGBA.

    Args:
      data: Encoded bytes, a path, or an array uint8 [H, W], [H, W, 1], [H, W, 3] or
        [H, W, 4].
      least_side: The shorter side that is needed, in pixels. A much larger JPEG is
        decoded at 1/2, 1/4 or 1/8 of its size, and any image of more than 89 million
        pixels is reduced, to no less than twice this side.
      mode: "RGB", "RGBA" or "L".

    Returns:
      PIL image of that mode.

    Raises:
      DecodeError: If the data is not an image, is cut short or is damaged, or would
        take more memory than the limit, see `memory.memory_limit`.
    """
    return guarded(_read_as, data, least_side, mode)


def decode_plane(data: Any) -> Shaped[np.ndarray, "H W"]:
    """Decodes an image of one channel without rescaling its values.

    Args:
      data: Encoded bytes, a path, or an array [H, W] or [H, W, 1].

    Returns:
      Array [H, W] of the file's own integers or floats; indices for a palette.

    Raises:
      DecodeError: As `decode`, and if there are several channels.
    """
    return guarded(_read_plane, data)


def decode_grey(data: Any) -> Shaped[np.ndarray, "H W"]:
    """Decodes an image of any mode to one channel, such as a mask.

    Args:
      data: Encoded bytes, a path, or an array uint8 [H, W], [H, W, 1], [H, W, 3] or
        [H, W, 4], or of one channel and any type.

    Returns:
      Array [H, W]: the file's own numbers if it has one channel, else the brightness,
      uint8, with transparent pixels black.

    Raises:
      DecodeError: If it is not an image, is cut short or is damaged.
    """
    return guarded(_read_grey, data)


def size_of(data: Any) -> tuple[int, int]:
    """Reads the size of an image without decoding its pixels.

    Args:
      data: As for `decode`.

    Returns:
      (width, height) in pixels of the result of `decode`.

    Raises:
      DecodeError: If it is not an image.
    """
    return guarded(_read_size, data)


def guarded(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a decoder and converts any error to a DecodeError.

    Args:
      function: The decoder.
      *arguments: Its arguments.

    Returns:
      Its result.

    Raises:
      DecodeError: If it fails.
    """
    try:
        with without_pillows_limit():
            return function(*arguments)
    except DecodeError:
        raise
    # Damaged files raise nearly anything: OSError, SyntaxError, struct.error, ...
    except Exception as error:
        text = str(error).split(" <_io")[0] or type(error).__name__
        raise DecodeError(" ".join(text.split())) from error


def open_image(data: Any) -> Image.Image:
    """Opens an image of a supported format; to be called in `guarded`.

    Args:
      data: Encoded bytes, a path, or an array that Pillow supports.

    Returns:
      PIL image, whose pixels are not loaded yet.
    """
    if isinstance(data, np.ndarray):
        return Image.fromarray(data[..., 0] if data.shape[2:] == (1,) else data)
    if not isinstance(data, bytes) and is_remote(data):
        data = as_path(data).read_bytes()
    source = io.BytesIO(data) if isinstance(data, bytes) else os.fspath(data)
    return Image.open(source, formats=_formats())


@functools.cache
def _formats():
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def load_image(
    image: Image.Image, size: tuple[int, int] | None = None, more: int = 0
) -> None:
    """Loads the pixels of an image, if there is memory for them.

    Args:
      image: Opened image.
      size: (width, height) in pixels in the file, if the image is drafted.
      more: Bytes needed for results made from it.

    Raises:
      DecodeError: If they take more than the limit.
    """
    size = size or image.size
    needed = bytes_to_load(image, size) + more
    require_memory(needed, f"{size[0]} x {size[1]} pixels of mode {image.mode}")
    image.load()


def _read_size(data):
    with open_image(data) as image:
        if image.format == "PNG":
            # Pillow looks for Exif data after the pixels, which it decodes first.
            needed = bytes_to_load(image, image.size)
            require_memory(needed, f"{image.width} x {image.height} pixels")
        # Pillow transposes TIFF itself, and its size is already that of the result.
        turned = image.format != "TIFF" and orientation_of(image) in (5, 6, 7, 8)
        return image.size[::-1] if turned else image.size


def _read_as(data, least_side, mode):
    with open_image(data) as image:
        size = image.size
        if least_side:
            # Twice the needed size leaves the antialiasing to the following resize.
            _shrink_on_load(image, 2 * least_side)
        factor = _factor(image.size, least_side)
        as_it_is = image.mode == mode and factor == 1
        pixels = image.width * image.height
        load_image(image, size, 0 if as_it_is else 4 * pixels // factor**2)
        return upright(image, _to_mode(image, factor, mode))


def _shrink_on_load(image, least_side):
    """Lets libjpeg decode at a fraction of the size, both sides >= `least_side`."""
    if image.format in ("JPEG", "MPO"):
        image.draft(None, (least_side, least_side))


def _factor(size, least_side):
    """Factor by which to reduce a huge image, keeping both sides >= 2 `least_side`."""
    if not least_side or size[0] * size[1] <= _HUGE:
        return 1
    return max(1, min(size) // (2 * least_side))


def orientation_of(image: Image.Image) -> int:
    """Reads the Exif orientation of an image; 1 if its Exif data are damaged.

    Args:
      image: Opened image.

    Returns:
      Value of the Exif tag Orientation, 1 to 8: how to transpose the image.
    """
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        return 1


def upright(image: Image.Image, result: Image.Image) -> Image.Image:
    """Transposes a result made from an image by the image's Exif orientation.

    Args:
      image: The image.
      result: PIL image made from it.

    Returns:
      PIL image.
    """
    turn = _BY_ORIENTATION.get(orientation_of(image))
    return result if turn is None else result.transpose(turn)


def _to_mode(image, factor, mode):
    clear = _is_transparent(image)
    if image.mode == mode and factor == 1 and (not clear or mode == "RGBA"):
        return image
    convert = _converter(image, BACKGROUND)
    if mode == "RGBA" and clear:
        return _in_bands(image, factor, mode, lambda band: band.convert(mode))
    return _in_bands(image, factor, mode, lambda band: convert(band).convert(mode))


def _in_bands(image, factor, mode, convert):
    """Converts and reduces an image, some rows at a time."""
    width, height = image.size
    rows = max(1, _BAND // (width * factor)) * factor
    if rows >= height:
        return _reduced(convert(image), factor)
    result = Image.new(mode, (-(-width // factor), -(-height // factor)))
    for top in range(0, height, rows):
        band = image.crop((0, top, width, min(top + rows, height)))
        result.paste(_reduced(convert(band), factor), (0, top // factor))
    return result


def _reduced(image, factor):
    return image if factor == 1 else image.reduce(factor)


def _converter(image, ground):
    """Makes the function that converts an image, or a band of it, to RGB."""
    if image.mode.startswith(("I", "F")):
        low, high = _range(image)
        return lambda band: _deep_grey(band, low, high).convert("RGB")
    if _is_transparent(image):
        return lambda band: _on_ground(band, ground)
    return lambda band: band.convert("RGB")


def _is_transparent(image):
    return image.mode in _TRANSPARENT or "transparency" in image.info


def _on_ground(image, ground):
    image = image.convert("RGBA")
    below = Image.new("RGBA", image.size, (*ground, 255))
    return Image.alpha_composite(below, image).convert("RGB")


def _range(image):
    """The values of black and white in grey of more than 8 bits.

    16-bit integers have their full range. 32-bit integers and floats have no fixed one:
    it is the first of [0, 1] (floats only), [0, 255] and [0, 65535] that contains all
    values, or their own minimum and maximum if none does.
    """
    sixteen = image.mode == "I" and image.format in SIXTEEN
    if image.mode.startswith("I;16") or sixteen:
        return 0, 65535
    width, height = image.size
    rows = max(1, _BAND // width)
    tops = range(0, height, rows)
    bands = (image.crop((0, y, width, min(y + rows, height))) for y in tops)
    found = [(b.min(), b.max()) for b in map(_floats, bands)]
    low, high = min(low for low, _ in found), max(high for _, high in found)
    fits = [top for top in _TOPS[image.mode] if low >= 0 and high <= top]
    return (0, fits[0]) if fits else (low, low + max(high - low, 1e-12))


def _floats(image):
    return np.nan_to_num(np.asarray(image).astype(np.float64))


def _deep_grey(image, low, high):
    values = (_floats(image) - low) * (255 / (high - low))
    return Image.fromarray(np.round(values).astype(np.uint8))


def _read_grey(data):
    if isinstance(data, np.ndarray):
        if data.ndim == 2 or data.shape[2:] == (1,):
            return _read_plane(data)
        return np.asarray(_to_grey(Image.fromarray(data)))
    with open_image(data) as image:
        # Indices of a palette are not brightness.
        plain = len(image.getbands()) == 1 and image.mode != "P"
        more = bytes_per_pixel(image.mode) if plain else 2
        load_image(image, image.size, more * image.width * image.height)
        plain &= not _is_transparent(image)
        return np.asarray(upright(image, image if plain else _to_grey(image)))


def _to_grey(image):
    convert = _converter(image, UNPAINTED)
    return _in_bands(image, 1, "L", lambda band: convert(band).convert("L"))


def _read_plane(data):
    if isinstance(data, np.ndarray):
        array = data[..., 0] if data.shape[2:] == (1,) else data
    else:
        with open_image(data) as image:
            if len(image.getbands()) > 1:
                bands = len(image.getbands())
                raise DecodeError(f"expected one channel, got ({bands},)")
            each = bytes_per_pixel(image.mode)
            load_image(image, image.size, each * image.width * image.height)
            array = np.asarray(image)
            if image.format in SIXTEEN and image.mode == "I":
                array = array.astype(np.uint16)
    if array.ndim != 2:
        raise DecodeError(f"expected one channel, got {array.shape[2:] or array.shape}")
    return array
