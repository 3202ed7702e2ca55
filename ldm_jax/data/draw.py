"""Conditions as pictures to look at: maps in colour, boxes, hatched holes."""

import colorsys

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ldm_jax.data import inputs
from ldm_jax.data.layout import decode_layout
from ldm_jax.images import to_uint8

_PAPER, _FRAME, _HATCH = (255, 255, 255), (200, 200, 200), (214, 40, 57)


def show_input(make, value, shape, names=()):
    """Draws what a model is told under one key.

    Args:
      make: The Input that made it.
      value: Array without batch axis.
      shape: (height, width) of the panel in pixels.
      names: Names of the classes of boxes, if known.

    Returns:
      uint8 [height, width, 3]; None where there is nothing to draw.
    """
    draw = _DRAW.get(type(make))
    return None if draw is None else draw(make, np.asarray(value), shape, names)


def fit(image, shape):
    """Brings a picture into a panel: pixels stay visible, proportions stay.

    Args:
      image: uint8 [H, W, 3].
      shape: (height, width) of the panel in pixels.

    Returns:
      uint8 [height, width, 3], white where the picture does not reach.
    """
    height, width = image.shape[:2]
    scale = min(shape[0] / height, shape[1] / width)
    sides = max(1, round(width * scale)), max(1, round(height * scale))
    way = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    panel = Image.new("RGB", (shape[1], shape[0]), _PAPER)
    place = (shape[1] - sides[0]) // 2, (shape[0] - sides[1]) // 2
    panel.paste(Image.fromarray(image).resize(sides, way), place)
    return np.asarray(panel)


def color_of(number):
    """A colour of a class, (red, green, blue): neighbours in number differ in hue."""
    # The golden ratio spreads hues evenly, however many there are.
    hue = (number * 0.618034) % 1.0
    light = 0.62 if number % 2 else 0.45
    return tuple(round(255 * c) for c in colorsys.hls_to_rgb(hue, light, 0.62))


def color_labels(labels):
    """Colours a map of classes, integers [H, W] -> uint8 [H, W, 3]; 0 is pale."""
    numbers, places = np.unique(np.asarray(labels), return_inverse=True)
    colors = [color_of(int(number)) if number else _FRAME for number in numbers]
    palette = np.array(colors, np.uint8)
    return palette[places.reshape(np.shape(labels))]


def grey(plane):
    """Draws floats [H, W, 1], the least black and the most white: uint8 [H, W, 3]."""
    low, high = plane.min(), plane.max()
    plane = (plane - low) / (high - low if high > low else 1)
    return np.round(255 * plane).astype(np.uint8).repeat(3, axis=-1)


def hatch(image, hole):
    """Hatches the hole of a picture.

    Args:
      image: uint8 [H, W, 3].
      hole: bool [H, W, 1], true where it is.

    Returns:
      uint8 [H, W, 3].
    """
    spacing = max(4, max(image.shape) // 24)
    rows, columns = np.indices(image.shape[:2])
    lines = ((rows + columns) % spacing < spacing // 4)[..., None]
    pale = (image // 2 + 112).astype(np.uint8)
    hatched = np.where(lines, np.uint8(_HATCH), pale)
    return np.where(hole, hatched, image)


def draw_boxes(boxes, labels, shape, names=()):
    """Draws boxes with the names of their classes.

    Args:
      boxes: [n, 4] as (ymin, xmin, ymax, xmax) in [0, 1].
      labels: Integers [n].
      shape: (height, width) of the result in pixels.
      names: Names of the classes; numbers are written where there are none.

    Returns:
      uint8 [height, width, 3].
    """
    height, width = shape
    picture = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 0, width - 1, height - 1), outline=_FRAME)
    for box, label in zip(boxes, labels, strict=True):
        top, left, bottom, right = np.asarray(box) * np.tile((height, width), 2)
        color = color_of(int(label))
        draw.rectangle((left, top, right - 1, bottom - 1), outline=color, width=2)
        text = names[label] if label < len(names) else str(label)
        draw.text((left + 4, top + 2), text, fill=color, font=font(12))
    return np.asarray(picture)


def font(size):
    """The font that Pillow brings along, `size` pixels high."""
    return ImageFont.load_default(size)


def _layout(make, ids, shape, names):
    boxes, labels, _ = decode_layout(ids, make.vocab_size)
    return draw_boxes(boxes, labels, shape, names)


def _segmentation(make, labels, shape, names):
    return fit(color_labels(labels), shape)


def _depth(make, depth, shape, names):
    return fit(grey(depth), shape)


def _low_res(make, image, shape, names):
    return fit(to_uint8(image), shape)


def _masked_image(make, told, shape, names):
    # Enlarged first, or lines would be as wide as pixels.
    image, hole = to_uint8(told[..., :3]), told[..., 3:] * np.uint8([255, 255, 255])
    hole = fit(hole.astype(np.uint8), shape)[..., :1] > 127
    return hatch(fit(image, shape), hole)


def _image(make, image, shape, names):
    return fit(image, shape)


# What is drawn of an input; of others, such as captions, nothing.
_DRAW = {
    inputs.Layout: _layout,
    inputs.Segmentation: _segmentation,
    inputs.Depth: _depth,
    inputs.LowRes: _low_res,
    inputs.MaskedImage: _masked_image,
    inputs.Image: _image,
}
