"""Decodes image files of any format and mode to 8-bit RGB.

What the modes become:
- transparency (RGBA, LA, a transparent palette entry or colour): laid over BACKGROUND;
- 16-bit grey: scaled; 32-bit integer and float grey: see `_deep_grey`;
- CMYK, YCbCr, HSV, palette, 1-bit: converted to RGB; colour profiles are ignored;
- EXIF orientation: applied; animations and multi-page files: the first frame.
"""

import io
import os
import warnings

import numpy as np
from PIL import ExifTags, Image, ImageOps

# Colour behind transparent pixels: white, as on a page.
BACKGROUND = (255, 255, 255)

# Largest values that 32-bit grey may be meant to have, by kind of number.
_TOPS = {"f": (1, 255, 65535), "i": (255, 65535), "u": (255, 65535)}

_TRANSPARENT = ("RGBA", "LA", "PA", "RGBa", "La")

# Pillow warns of large images and odd metadata, which are no concern of a user who
# reads thousands of files; what it cannot decode it raises.
warnings.filterwarnings("ignore", module=r"PIL\.")


class DecodeError(ValueError):
    """An image that cannot be read; the message says what is wrong with it."""


def decode(data, least_side=None):
    """Decodes an image to RGB.

    Args:
      data: Encoded bytes, a path, or an array uint8 [H, W], [H, W, 1], [H, W, 3] or
        [H, W, 4].
      least_side: The shorter side that is needed, in pixels. A JPEG much larger is
        decoded at 1/2, 1/4 or 1/8 of its size, no smaller than twice this.

    Returns:
      PIL image of mode RGB.

    Raises:
      DecodeError: If the data is no image, is cut short or is damaged.
    """
    return _guarded(_open_rgb, data, least_side)


def decode_plane(data):
    """Decodes an image of one channel without rescaling its values.

    Args:
      data: Encoded bytes, a path, or an array [H, W] or [H, W, 1].

    Returns:
      Array [H, W] of the file's own integers or floats; indices for a palette.

    Raises:
      DecodeError: As `decode`, and if there are several channels.
    """
    return _guarded(_open_plane, data)


def _guarded(function, *arguments):
    """Calls a decoder; whatever it trips over becomes a DecodeError."""
    try:
        return function(*arguments)
    except DecodeError:
        raise
    # Damaged files raise nearly anything: OSError, SyntaxError, struct.error, ...
    except Exception as error:
        text = str(error).split(" <_io")[0] or type(error).__name__
        raise DecodeError(" ".join(text.split())) from error


def _open(data):
    if isinstance(data, np.ndarray):
        return Image.fromarray(data[..., 0] if data.shape[2:] == (1,) else data)
    return Image.open(io.BytesIO(data) if isinstance(data, bytes) else os.fspath(data))


def _open_rgb(data, least_side):
    with _open(data) as image:
        if least_side:
            # Twice what is needed leaves the antialiasing to the resize that follows.
            _shrink_on_load(image, 2 * least_side)
        image.load()
        return _to_rgb(_upright(image))


def _shrink_on_load(image, least_side):
    """Lets libjpeg decode at a fraction of the size, both sides >= `least_side`."""
    if image.format in ("JPEG", "MPO"):
        image.draft(None, (least_side, least_side))


def _upright(image):
    """Applies the EXIF orientation; damaged EXIF data does not spoil the picture."""
    try:
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            return ImageOps.exif_transpose(image)
    except Exception:
        pass
    return image


def _to_rgb(image):
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith(("I", "F")):
        # Pillow 10 opens 16-bit PNG files in a 32-bit mode.
        top = 65535 if image.format == "PNG" else None
        return Image.fromarray(_deep_grey(np.asarray(image), top)).convert("RGB")
    if image.mode in _TRANSPARENT or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, (*BACKGROUND, 255))
        return Image.alpha_composite(ground, image).convert("RGB")
    return image.convert("RGB")


def _deep_grey(values, top=None):
    """Scales grey values of more than 8 bits to uint8.

    16-bit integers fill their range. 32-bit integers and floats have no fixed one: they
    are taken to lie in [0, 1] (floats), else [0, 255], else [0, 65535], whichever is
    the first to hold all values, and are stretched to their own range if none does.
    """
    if values.dtype.itemsize == 2:
        top = 65535
    kind = values.dtype.kind
    values = np.nan_to_num(values.astype(np.float64))
    low, high = values.min(), values.max()
    tops = (top,) if top else _TOPS[kind]
    top = next((top for top in tops if low >= 0 and high <= top), None)
    if top is None:
        values, top = values - low, max(high - low, 1e-12)
    return np.round(values * (255 / top)).astype(np.uint8)


def _open_plane(data):
    if isinstance(data, np.ndarray):
        array = data[..., 0] if data.shape[2:] == (1,) else data
    else:
        with _open(data) as image:
            array = np.asarray(image)
    if array.ndim != 2:
        raise DecodeError(f"expected one channel, got {array.shape[2:] or array.shape}")
    return array
