"""Draws flat shapes with soft edges, shading and shadows, and the background.

Shapes are signed distance functions (negative inside): edges, bevels and shadows of any
softness come from one array. The formulas are exact distances after Inigo Quilez, "2D
distance functions" (iquilezles.org). Coordinates: x to the right, y up, the shape
centred on the origin and within about one unit of it.
"""

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from ldm_jax.annotations import Float, Num

# Direction to the light, at the upper left (y up).
LIGHT = (-0.55, 0.83)


def _circle(x, y):
    return np.hypot(x, y) - 0.95


def _box(x, y, width, height):
    x, y = np.abs(x) - width, np.abs(y) - height
    outside = np.hypot(np.maximum(x, 0), np.maximum(y, 0))
    return outside + np.minimum(np.maximum(x, y), 0)


def _square(x, y):
    return _box(x, y, 0.76, 0.76) - 0.06


def _triangle(x, y):
    side, k = 1.0, np.sqrt(3.0).astype(np.float32)
    x, y = np.abs(x) - side, y + 0.42 - 0.3 + side / k
    beyond = x + k * y > 0
    x, y = np.where(beyond, (x - k * y) / 2, x), np.where(beyond, (-k * x - y) / 2, y)
    x = x - np.clip(x, -2 * side, 0)
    return -np.hypot(x, y) * np.sign(y) - 0.05


def _star(x, y, radius=1.08, sharpness=0.5):
    cos, sin = 0.80901699, 0.58778525
    x = np.abs(x)
    for sign in (1, -1):
        fold = 2 * np.maximum(sign * cos * x - sin * y, 0)
        x, y = x - sign * cos * fold, y + sin * fold
    x, y = np.abs(x), y - radius
    edge_x, edge_y = sharpness * sin, sharpness * cos - 1
    along = (x * edge_x + y * edge_y) / (edge_x**2 + edge_y**2)
    along = np.clip(along, 0, radius)
    inside = np.sign(y * edge_x - x * edge_y)
    return np.hypot(x - edge_x * along, y - edge_y * along) * inside - 0.02


def _heart(x, y, scale=1.68):
    x, y = np.abs(x) / scale, y / scale + 0.54
    lobe = np.hypot(x - 0.25, y - 0.75) - np.float32(np.sqrt(2) / 4)
    half = 0.5 * np.maximum(x + y, 0)
    tip = np.minimum(np.hypot(x, y - 1), np.hypot(x - half, y - half))
    return scale * np.where(x + y > 1, lobe, tip * np.sign(x - y))


def _cross(x, y, arm=0.94, width=0.32):
    x, y = np.abs(x), np.abs(y)
    x, y = np.maximum(x, y), np.minimum(x, y)
    over_x, over_y = x - arm, y - width
    most = np.maximum(over_x, over_y)
    near_x = np.where(most > 0, over_x, width - x)
    near_y = np.where(most > 0, over_y, -most)
    distance = np.hypot(np.maximum(near_x, 0), np.maximum(near_y, 0))
    return np.sign(most) * distance - 0.04


def _ring(x, y):
    return np.abs(np.hypot(x, y) - 0.68) - 0.28


def _crescent(x, y, radius=1.0, bite=0.84, shift=0.56):
    x, y = x + 0.22, np.abs(y)
    a = (radius**2 - bite**2 + shift**2) / (2 * shift)
    b = np.float32(np.sqrt(radius**2 - a**2))
    at_tip = shift * (x * b - y * a) > shift**2 * np.maximum(b - y, 0)
    body = np.maximum(np.hypot(x, y) - radius, bite - np.hypot(x - shift, y))
    return np.where(at_tip, np.hypot(x - a, y - b), body) - 0.02


def distances(
    kind: str, size: int, x: float, y: float, radius: float, angle: float
) -> tuple[
    slice,
    slice,
    Float[np.ndarray, "height width"],
    Float[np.ndarray, "1 width"],
    Float[np.ndarray, "height 1"],
]:
    """Evaluates a shape's signed distance at the pixels around it.

    Args:
      kind: Row of KINDS.
      size: Side of the image in pixels.
      x: Centre from the left edge, in image sides.
      y: Centre from the top edge, in image sides.
      radius: Length of the shape's unit, in image sides.
      angle: Rotation in radians, counter-clockwise.

    Returns:
      (rows, columns, distance, u, v): the window as two slices, the signed distance in
      pixels [h, w], and the window's coordinates in the shape's unit, not rotated, as
      [1, w] and [h, 1].
    """
    reach = 1.3 * radius
    rows = _window(y - reach, y + reach, size)
    columns = _window(x - reach, x + reach, size)
    u = (np.arange(columns.start, columns.stop, dtype=np.float32) + 0.5) / size
    v = (np.arange(rows.start, rows.stop, dtype=np.float32) + 0.5) / size
    u = ((u - x) / radius).astype(np.float32)[None, :]
    v = ((y - v) / radius).astype(np.float32)[:, None]
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    distance = KINDS[kind](cos * u + sin * v, cos * v - sin * u)
    return rows, columns, distance * np.float32(radius * size), u, v


def _window(low, high, size):
    return slice(max(0, int(low * size)), min(size, int(high * size) + 2))


def coverage(
    distance: Float[np.ndarray, "height width"], softness: float = 1.0
) -> Float[np.ndarray, "height width"]:
    """Computes the fraction of each pixel that is inside a shape.

    Args:
      distance: Signed distance in pixels, [h, w].
      softness: Width of the edge in pixels.

    Returns:
      Fractions in [0, 1], [h, w].
    """
    return np.clip(0.5 - distance / softness, 0, 1)


def shading(
    distance: Float[np.ndarray, "height width"],
    u: Float[np.ndarray, "1 width"],
    v: Float[np.ndarray, "height 1"],
    unit: float,
) -> tuple[Float[np.ndarray, "height width"], Float[np.ndarray, "height width"]]:
    """Computes the shading of a softly bevelled surface, lit from the upper left.

    Args:
      distance: Signed distance in pixels, [h, w].
      u: Horizontal coordinate in the shape's unit, [1, w].
      v: Vertical coordinate in the shape's unit, [h, 1].
      unit: The shape's unit in pixels.

    Returns:
      (brightness, height): the factor of the colour, about 1, and the relief in [0, 1],
      both [h, w].
    """
    depth = np.clip(distance * (-1 / (0.3 * unit)), 0, 1)
    height = depth * (2 - depth)
    brightness = 0.72 + 0.3 * height
    brightness += (0.22 * LIGHT[0]) * u + (0.22 * LIGHT[1]) * v
    return brightness, height


def background(
    pattern: str,
    size: int,
    first: ArrayLike,
    second: ArrayLike,
    angle: float,
    scale: float,
    phase: float,
    grid: Num[np.ndarray, "6 6"],
) -> Float[np.ndarray, "3 size size"]:
    """Draws the background: a mixture of two colours.

    Args:
      pattern: Row of PATTERNS.
      size: Side in pixels.
      first: RGB colour in [0, 255], float [3].
      second: RGB colour in [0, 255], float [3].
      angle: Direction of the pattern in radians.
      scale: Period of the pattern, in image sides.
      phase: Offset of the pattern, in periods.
      grid: Random values in [0, 1], [6, 6], the heights of the clouds.

    Returns:
      Colours, float32 [3, size, size].
    """
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    along = cos * axis[None, :] + sin * axis[:, None]
    across = cos * axis[:, None] - sin * axis[None, :]
    mix = PATTERNS[pattern](along, across, np.float32(scale), phase, size, grid)
    first, second = (np.asarray(c, np.float32)[:, None, None] for c in (first, second))
    return first + (second - first) * mix


def _plain(along, across, scale, phase, size, grid):
    return np.zeros((size, size), np.float32)


def _gradient(along, across, scale, phase, size, grid):
    return np.clip(along / 1.2 + 0.5, 0, 1)


def _wave(position, scale, phase, size):
    """Square wave in [-1, 1] whose edges are one pixel wide."""
    turn = position / scale + phase
    distance = np.abs(turn - np.floor(turn) - 0.5) - 0.25
    return np.clip(distance * (2 * scale * size), -1, 1)


def _stripes(along, across, scale, phase, size, grid):
    return 0.5 + 0.5 * _wave(along, scale, phase, size)


def _checks(along, across, scale, phase, size, grid):
    waves = _wave(along, scale, phase, size) * _wave(across, scale, phase, size)
    return 0.5 + 0.5 * waves


def _clouds(along, across, scale, phase, size, grid):
    image = Image.fromarray(np.asarray(grid, np.float32))
    # With a border of one cell on each side, so that edges are not extrapolated.
    image = image.resize((size, size), Image.Resampling.BICUBIC, box=(1, 1, 5, 5))
    return np.clip(np.asarray(image), 0, 1)


PATTERNS = {
    "plain": _plain,
    "gradient": _gradient,
    "stripes": _stripes,
    "checks": _checks,
    "clouds": _clouds,
}

KINDS = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "cross": _cross,
    "ring": _ring,
    "crescent": _crescent,
}
