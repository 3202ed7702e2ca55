"""Draws side information as images: coloured maps, boxes, hatched masks.

Rows of MODALITIES refer to the functions `draw_*`, which take a value, the (height,
width) of the result in pixels and the names of the classes of boxes.
"""

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ldm_jax.annotations import Bool, Float, Shaped, UInt8
from ldm_jax.data.labels import name_of_class
from ldm_jax.images import to_uint8

_PAPER, _FRAME, _HATCH = (255, 255, 255), (200, 200, 200), (214, 40, 57)


def fit(
    image: UInt8[np.ndarray, "H W 3"], shape: tuple[int, int]
) -> UInt8[np.ndarray, "height width 3"]:
    """Fits an image into a size, keeping its aspect ratio; enlarged pixels stay sharp.

    Args:
      image: uint8 [H, W, 3].
      shape: (height, width) of the result in pixels.

    Returns:
      uint8 [height, width, 3], white outside the image.
    """
    height, width = image.shape[:2]
    scale = min(shape[0] / height, shape[1] / width)
    sides = max(1, round(width * scale)), max(1, round(height * scale))
    method = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    paper = Image.new("RGB", (shape[1], shape[0]), _PAPER)
    place = (shape[1] - sides[0]) // 2, (shape[0] - sides[1]) // 2
    paper.paste(Image.fromarray(image).resize(sides, method), place)
    return np.asarray(paper)


def color_of(number: int) -> tuple[int, int, int]:
    """Chooses a colour for a class; consecutive classes differ in hue.

    Args:
      number: Number of the class.

    Returns:
      (red, green, blue), each 0 to 255.
    """
    # The golden ratio spreads hues evenly, however many there are.
    hue = (number * 0.618034) % 1.0
    light = 0.62 if number % 2 else 0.45
    return tuple(round(255 * c) for c in colorsys.hls_to_rgb(hue, light, 0.62))


def color_labels(labels: Shaped[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W 3"]:
    """Colours a map of classes.

    Args:
      labels: Integers [H, W].

    Returns:
      uint8 [H, W, 3]; class 0 is pale.
    """
    numbers, places = np.unique(np.asarray(labels), return_inverse=True)
    colors = [color_of(int(number)) if number else _FRAME for number in numbers]
    palette = np.array(colors, np.uint8)
    return palette[places.reshape(np.shape(labels))]


def grey(plane: Float[np.ndarray, "H W 1"]) -> UInt8[np.ndarray, "H W 3"]:
    """Rescales a map of one channel: its minimum is black, its maximum white.

    Args:
      plane: Floats [H, W, 1].

    Returns:
      uint8 [H, W, 3].
    """
    low, high = plane.min(), plane.max()
    plane = (plane - low) / (high - low if high > low else 1)
    return np.round(255 * plane).astype(np.uint8).repeat(3, axis=-1)


def hatch(
    image: UInt8[np.ndarray, "H W 3"], mask: Bool[np.ndarray, "H W 1"]
) -> UInt8[np.ndarray, "H W 3"]:
    """Hatches the region of an image that is to be inpainted.

    Args:
      image: uint8 [H, W, 3].
      mask: bool [H, W, 1], true where it is to be filled.

    Returns:
      uint8 [H, W, 3].
    """
    spacing = max(4, max(image.shape) // 24)
    rows, columns = np.indices(image.shape[:2])
    lines = ((rows + columns) % spacing < spacing // 4)[..., None]
    pale = (image // 2 + 112).astype(np.uint8)
    hatched = np.where(lines, np.uint8(_HATCH), pale)
    return np.where(mask, hatched, image)


def draw_image(
    image: UInt8[np.ndarray, "H W 3"], shape: tuple[int, int], names: Sequence = ()
) -> UInt8[np.ndarray, "height width 3"]:
    """Draws an image as it is.

    Args:
      image: uint8 [H, W, 3].
      shape: (height, width) of the result in pixels.
      names: Not used.

    Returns:
      uint8 [height, width, 3].
    """
    return fit(image, shape)


def draw_labels(
    labels: Shaped[np.ndarray, "H W"], shape: tuple[int, int], names: Sequence = ()
) -> UInt8[np.ndarray, "height width 3"]:
    """Draws a map of classes, each in a colour of its own.

    Args:
      labels: Integers [H, W].
      shape: (height, width) of the result in pixels.
      names: Not used.

    Returns:
      uint8 [height, width, 3].
    """
    return fit(color_labels(labels), shape)


def draw_grey(
    plane: Float[np.ndarray, "H W 1"], shape: tuple[int, int], names: Sequence = ()
) -> UInt8[np.ndarray, "height width 3"]:
    """Draws a map of one channel, stretched from black to white.

    Args:
      plane: Floats [H, W, 1].
      shape: (height, width) of the result in pixels.
      names: Not used.

    Returns:
      uint8 [height, width, 3].
    """
    return fit(grey(plane), shape)


def draw_vectors(
    vectors: Float[np.ndarray, "H W 3"], shape: tuple[int, int], names: Sequence = ()
) -> UInt8[np.ndarray, "height width 3"]:
    """Draws a map of three channels, such as surface normals, as colours.

    Args:
      vectors: Floats [H, W, 3] in [-1, 1].
      shape: (height, width) of the result in pixels.
      names: Not used.

    Returns:
      uint8 [height, width, 3].
    """
    return fit(to_uint8(vectors), shape)


def draw_mask(
    mask: Bool[np.ndarray, "H W"], shape: tuple[int, int], names: Sequence = ()
) -> UInt8[np.ndarray, "height width 3"]:
    """Draws a mask, white where an image is to be filled.

    Args:
      mask: bool [H, W].
      shape: (height, width) of the result in pixels.
      names: Not used.

    Returns:
      uint8 [height, width, 3].
    """
    return fit(mask[..., None].repeat(3, axis=-1).astype(np.uint8) * 255, shape)


def draw_masked(
    image: UInt8[np.ndarray, "H W 3"],
    mask: Bool[np.ndarray, "H W 1"],
    shape: tuple[int, int],
) -> UInt8[np.ndarray, "height width 3"]:
    """Draws an image with a hatched region to fill.

    Args:
      image: uint8 [H, W, 3].
      mask: bool [H, W, 1], true where it is to be filled.
      shape: (height, width) of the result in pixels.

    Returns:
      uint8 [height, width, 3].
    """
    # Enlarged first, or lines would be as wide as the original pixels.
    enlarged = draw_mask(mask[..., 0], shape)[..., :1] > 127
    return hatch(fit(image, shape), enlarged)


def draw_layout(
    layout: tuple[
        Sequence | Shaped[np.ndarray, "n 4"], Sequence | Shaped[np.ndarray, " n"]
    ],
    shape: tuple[int, int],
    names: Sequence[str] = (),
) -> UInt8[np.ndarray, "height width 3"]:
    """Draws boxes with the names of their classes.

    Args:
      layout: (boxes [n, 4] as (ymin, xmin, ymax, xmax) in [0, 1], labels [n]); objects
        with a negative label are left out.
      shape: (height, width) of the result in pixels.
      names: Names of the classes; classes without a name are shown by number.

    Returns:
      uint8 [height, width, 3].
    """
    height, width = shape
    paper = Image.new("RGB", (width, height), _PAPER)
    canvas = ImageDraw.Draw(paper)
    canvas.rectangle((0, 0, width - 1, height - 1), outline=_FRAME)
    for box, label in zip(*layout, strict=True):
        if label < 0:
            continue
        top, left, bottom, right = np.asarray(box) * np.tile((height, width), 2)
        color = color_of(int(label))
        canvas.rectangle((left, top, right - 1, bottom - 1), outline=color, width=2)
        text = name_of_class(label, names)
        canvas.text((left + 4, top + 2), text, fill=color, font=font(12))
    return np.asarray(paper)


def font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Loads Pillow's default font.

    Args:
      size: Height in pixels.

    Returns:
      A Pillow font.
    """
    return ImageFont.load_default(size)
