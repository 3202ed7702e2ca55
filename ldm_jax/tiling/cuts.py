"""Positions of tiles along an axis, and the blending weights of their cells."""

from typing import Any, NamedTuple

import numpy as np

from ldm_jax.annotations import Float


class Cut(NamedTuple):
    """An axis cut into tiles of equal length; the last one ends with the axis.

    Attributes:
      starts: First cell of every tile.
      tile: Cells per tile.
      overlap: Minimum number of cells that neighbours share.
      length: Cells of the axis.
    """

    starts: list
    tile: int
    overlap: int
    length: int


def cut_axis(length: int, tile: int, overlap: int, multiple: int = 1) -> Cut:
    """Cuts an axis into tiles.

    Args:
      length: Cells of the axis.
      tile: Cells per tile; an axis that is no longer than a tile is not cut.
      overlap: Minimum number of cells that neighbours share, from 0 to half a tile.
      multiple: Tiles are multiples of this, so a shorter axis is cut after all if it is
        not a multiple of it.

    Returns:
      A Cut.
    """
    tile = min(tile, length - length % multiple or length)
    overlap = min(overlap, tile // 2)
    count = 1 + -(-(length - tile) // (tile - overlap))
    starts = [min(i * (tile - overlap), length - tile) for i in range(count)]
    return Cut(starts, tile, overlap, length)


def spans(cut: Cut, zoom: int = 1) -> list[slice]:
    """Returns the slices of the tiles along the axis.

    Args:
      cut: A Cut.
      zoom: Length of a cell of the cut.

    Returns:
      A slice for each tile.
    """
    return [slice(start * zoom, (start + cut.tile) * zoom) for start in cut.starts]


def weights(cut: Cut, zoom: int = 1) -> list[Float[np.ndarray, " cells"]]:
    """Returns blending weights of each tile's cells; over all tiles they sum to one.

    Args:
      cut: A Cut.
      zoom: Length of a cell of the cut.

    Returns:
      For each tile, float32 [tile * zoom].
    """
    overlap, length = cut.overlap * zoom, cut.length * zoom
    # 0 over the first quarter of the overlap, 1 over the last, linear in between.
    ramp = (np.arange(overlap) + 0.5 - overlap / 4) / max(overlap / 2, 1)
    ramp = np.clip(ramp, 0, 1)
    rows, total = [], np.zeros(length)
    for span in spans(cut, zoom):
        row = np.ones(cut.tile * zoom)
        if span.start:
            row[:overlap] = ramp
        if span.stop < length:
            row[len(row) - overlap :] = ramp[::-1]
        total[span] += row
        rows.append((span, row))
    return [(row / total[span]).astype(np.float32) for span, row in rows]


def check_tile(factor: int, tile: int, overlap: int) -> None:
    """Checks that tiles are valid for a first stage.

    Args:
      factor: Its downsampling factor.
      tile: Side of a tile in pixels.
      overlap: Overlap in pixels.

    Raises:
      ValueError: If a size is not a multiple of the factor, or the overlap too large.
    """
    for name, value in (("tile", tile), ("overlap", overlap)):
        if value % factor:
            raise ValueError(
                f"{name}={value} is not a multiple of the first stage's factor "
                f"{factor}; use {name}={-(-value // factor) * factor}"
            )
    if tile < 1 or not 0 <= overlap <= tile // 2:
        raise ValueError(
            f"overlap={overlap} must be from 0 to half of tile={tile}, which is "
            f"{tile // 2}"
        )


def check_image(images: Any, factor: int) -> None:
    """Checks that the size of images is a multiple of the downsampling factor.

    Args:
      images: Array [B, H, W, C].
      factor: Downsampling factor of the first stage.

    Raises:
      ValueError: If height or width is not a multiple of the factor.
    """
    height, width = images.shape[1:3]
    if height % factor or width % factor:
        raise ValueError(
            f"an image of {height} x {width} pixels cannot be encoded: both must be "
            f"multiples of the first stage's factor {factor}; pad or crop it"
        )
