"""Images between the disk and the models: uint8 <-> [-1, 1], grids, PNG files."""

import contextlib
import io
import math
import os
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from ldm_jax.annotations import Float, Shaped, UInt8
from ldm_jax.errors import DecodeError


def to_float(images: Shaped[Any, "*shape"]) -> Float[Any, "*shape"]:
    """Maps uint8 images to float32 in [-1, 1].

    Args:
      images: NumPy or JAX array of uint8, of any shape.

    Returns:
      float32 array of the same kind and shape: x / 127.5 - 1.
    """
    return images.astype("float32") / 127.5 - 1


def to_uint8(images: Float[Any, "*shape"]) -> UInt8[Any, "*shape"]:
    """Maps images in [-1, 1] to uint8, the inverse of `to_float`.

    Args:
      images: NumPy or JAX array of floats, of any shape; values outside are clipped.

    Returns:
      uint8 array of the same kind and shape: floor(127.5 x + 128) in [0, 255].
    """
    return (images.astype("float32") * 127.5 + 128).clip(0, 255).astype("uint8")


def make_grid(
    images: Shaped[Any, "..."], columns: int | None = None, border: int = 2
) -> UInt8[np.ndarray, "height width 3"]:
    """Lays images out in rows, with white between them.

    Args:
      images: uint8 [N, H, W, 3], N >= 1.
      columns: Images per row; None makes the grid about square.
      border: Width of the gaps in pixels.

    Returns:
      uint8 [rows * (H + border) - border, columns * (W + border) - border, 3]; places
      without an image are white.

    Raises:
      ValueError: If `images` is not uint8 [N, H, W, 3].
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(
            "a grid needs uint8 images [N, H, W, 3], got "
            f"{images.dtype} {list(images.shape)}; use to_uint8 on floats"
        )
    count, height, width, _ = images.shape
    if not count:
        raise ValueError("a grid needs at least one image, got none")
    columns = min(count, columns or math.ceil(math.sqrt(count)))
    rows = math.ceil(count / columns)
    step = (height + border, width + border)
    grid = np.full((rows * step[0], columns * step[1], 3), 255, np.uint8)
    for index, image in enumerate(images):
        top, left = (index // columns) * step[0], (index % columns) * step[1]
        grid[top : top + height, left : left + width] = image
    return grid[: rows * step[0] - border, : columns * step[1] - border]


def encode_png(image: Shaped[Any, "H W *channels"]) -> bytes:
    """Encodes an image as PNG.

    Args:
      image: uint8 [H, W, 3] or [H, W].

    Returns:
      Bytes of the PNG file.

    Raises:
      ValueError: If `image` is not uint8.
    """
    image = np.asarray(image)
    if image.dtype != np.uint8:
        raise ValueError(f"PNG needs uint8, got {image.dtype}; use to_uint8 on floats")
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="png")
    return buffer.getvalue()


def write_png(path: str | os.PathLike, image: Shaped[Any, "H W *channels"]) -> None:
    """Writes a PNG file in one move: a reader sees the whole file or none.

    Args:
      path: Where to; missing folders are made.
      image: uint8 [H, W, 3] or [H, W].

    Raises:
      ValueError: If `image` is not uint8.
    """
    data = encode_png(image)
    path = os.path.abspath(os.fspath(path))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def read_image(source: Any) -> UInt8[np.ndarray, "H W 3"]:
    """Reads an image file of any format and mode as RGB; see `ldm_jax.images`.

    Args:
      source: Path, or the file's bytes.

    Returns:
      uint8 [H, W, 3].

    Raises:
      DecodeError: (a ValueError) If it is not an image or is damaged.
    """
    return np.asarray(decode(source))


# Colour behind transparent pixels: white, as on a page.
BACKGROUND = (255, 255, 255)


# Largest values that 32-bit grey may be meant to have, by kind of number.
_TOPS = {"f": (1, 255, 65535), "i": (255, 65535), "u": (255, 65535)}


_TRANSPARENT = ("RGBA", "LA", "PA", "RGBa", "La")


def decode(data: Any, least_side: int | None = None) -> Image.Image:
    """Decodes an image to RGB.

    Args:
      data: Encoded bytes, a path, or an array uint8 [H, W], [H, W, 1], [H, W, 3] or
        [H, W, 4].
      least_side: The shorter side that is needed, in pixels. A JPEG much larger is
        decoded at 1/2, 1/4 or 1/8 of its size, no smaller than twice this.

    Returns:
      PIL image of mode RGB.

    Raises:
      DecodeError: If the data is not an image, is cut short or is damaged.
    """
    return _guarded(_open_rgb, data, least_side)


def decode_plane(data: Any) -> Shaped[np.ndarray, "H W"]:
    """Decodes an image of one channel without rescaling its values.

    Args:
      data: Encoded bytes, a path, or an array [H, W] or [H, W, 1].

    Returns:
      Array [H, W] of the file's own integers or floats; indices for a palette.

    Raises:
      DecodeError: As `decode`, and if there are several channels.
    """
    return _guarded(_open_plane, data)


def decode_grey(data: Any) -> Shaped[np.ndarray, "H W"]:
    """Decodes an image of any mode to one channel, such as a mask.

    Args:
      data: Encoded bytes, a path, or an array uint8 [H, W], [H, W, 1], [H, W, 3] or
        [H, W, 4], or of one channel and any type.

    Returns:
      Array [H, W]: of one channel the file's own numbers, else the brightness, uint8.

    Raises:
      DecodeError: If it is not an image, is cut short or is damaged.
    """
    return _guarded(_open_grey, data)


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
    """Applies the EXIF orientation; damaged EXIF data does not spoil the image."""
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


def _open_grey(data):
    if isinstance(data, np.ndarray):
        if data.ndim == 2 or data.shape[2:] == (1,):
            return _open_plane(data)
        return np.asarray(_to_rgb(Image.fromarray(data)).convert("L"))
    with _open(data) as image:
        image.load()
        image = _upright(image)
        # Indices of a palette say nothing of brightness.
        if len(image.getbands()) == 1 and image.mode != "P":
            return np.asarray(image)
        return np.asarray(_to_rgb(image).convert("L"))


def _open_plane(data):
    if isinstance(data, np.ndarray):
        array = data[..., 0] if data.shape[2:] == (1,) else data
    else:
        with _open(data) as image:
            array = np.asarray(image)
    if array.ndim != 2:
        raise DecodeError(f"expected one channel, got {array.shape[2:] or array.shape}")
    return array
