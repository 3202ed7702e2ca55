"""Masks for inpainting, drawn at random: boxes, brush strokes, missing sides.

Sizes follow the large masks of LaMa (Suvorov et al. 2022), which are given for 256 px;
here they scale with the image.
"""

import numpy as np
from PIL import Image, ImageDraw

from ldm_jax.annotations import Bool

# Attempts before falling back to a plain band; masks of usual size need one or two.
TRIES = 20


def random_mask(
    height: int,
    width: int,
    rng: np.random.Generator,
    style: str = "mixed",
    min_fraction: float = 0.05,
    max_fraction: float = 0.6,
) -> Bool[np.ndarray, "{height} {width}"]:
    """Draws a mask.

    Args:
      height: Height H of the image in pixels.
      width: Width W of the image in pixels.
      rng: NumPy generator.
      style: Row of STYLES.
      min_fraction: Smallest fraction of the image to fill.
      max_fraction: Largest fraction of the image to fill.

    Returns:
      bool [H, W]; True is to be filled.
    """
    for _ in range(TRIES):
        mask = STYLES[style](height, width, rng)
        if min_fraction <= mask.mean() <= max_fraction:
            return mask
    return _band(height, width, rng, min_fraction, max_fraction)


def random_boxes(
    height: int, width: int, rng: np.random.Generator
) -> Bool[np.ndarray, "{height} {width}"]:
    """Draws one to four boxes, their sides 0.12 to 0.6 of the image's shorter one.

    Args:
      height: Height H of the image in pixels.
      width: Width W of the image in pixels.
      rng: NumPy generator.

    Returns:
      bool [H, W]; True is to be filled.
    """
    mask, side = np.zeros((height, width), bool), min(height, width)
    for _ in range(rng.integers(1, 5)):
        h, w = np.rint(rng.uniform(0.12, 0.6, 2) * side).astype(int).clip(1)
        top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
        mask[top : top + h, left : left + w] = True
    return mask


def random_strokes(
    height: int, width: int, rng: np.random.Generator
) -> Bool[np.ndarray, "{height} {width}"]:
    """Draws one to four broken lines, as of a broad brush with a round tip.

    Args:
      height: Height H of the image in pixels.
      width: Width W of the image in pixels.
      rng: NumPy generator.

    Returns:
      bool [H, W]; True is to be filled.
    """
    image, side = Image.new("1", (width, height)), min(height, width)
    canvas = ImageDraw.Draw(image)
    for _ in range(rng.integers(1, 5)):
        here = rng.uniform(0, 1, 2) * (width, height)
        for _ in range(rng.integers(1, 6)):
            angle = rng.uniform(0, 2 * np.pi)
            length = rng.uniform(0.04, 0.8) * side
            radius = max(rng.uniform(0.02, 0.4) * side, 1) / 2
            there = here + length * np.array([np.cos(angle), np.sin(angle)])
            there = there.clip(0, (width - 1, height - 1))
            canvas.line([*here, *there], fill=1, width=round(2 * radius))
            for x, y in (here, there):
                canvas.ellipse([x - radius, y - radius, x + radius, y + radius], fill=1)
            here = there
    return np.array(image)


def random_outside(
    height: int, width: int, rng: np.random.Generator
) -> Bool[np.ndarray, "{height} {width}"]:
    """Draws a mask for outpainting: one to four sides are missing, up to half each.

    Args:
      height: Height H of the image in pixels.
      width: Width W of the image in pixels.
      rng: NumPy generator.

    Returns:
      bool [H, W]; True is to be filled.
    """
    sides = rng.random(4) < 0.5
    sides[rng.integers(4)] = True
    missing = sides * rng.uniform(0.05, 0.5, 4)
    top, bottom = np.rint(missing[:2] * height).astype(int)
    left, right = np.rint(missing[2:] * width).astype(int)
    mask = np.ones((height, width), bool)
    mask[top : height - bottom, left : width - right] = False
    return mask


def random_mixed(
    height: int, width: int, rng: np.random.Generator
) -> Bool[np.ndarray, "{height} {width}"]:
    """Draws a mask of one of the other styles, most often strokes, rarely sides.

    Args:
      height: Height H of the image in pixels.
      width: Width W of the image in pixels.
      rng: NumPy generator.

    Returns:
      bool [H, W]; True is to be filled.
    """
    draw = rng.choice(
        [random_strokes, random_boxes, random_outside], p=[0.5, 0.35, 0.15]
    )
    return draw(height, width, rng)


def _band(height, width, rng, least, most):
    """Masks a band of rows, of a fraction within the bounds, up to one row."""
    rows = round(rng.uniform(least, most) * height)
    rows = min(max(rows, int(np.ceil(least * height))), int(most * height))
    top = rng.integers(height - rows + 1)
    mask = np.zeros((height, width), bool)
    mask[top : top + rows] = True
    return mask


# Functions that draw masks, by the value of the option `style`.
STYLES = {
    "box": random_boxes,
    "strokes": random_strokes,
    "outpaint": random_outside,
    "mixed": random_mixed,
}
