"""Tiling within a compiled program, of a backbone or a first stage."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ldm_jax.tiling.cuts import check_image, check_tile, cut_axis, spans, weights


def tile_first_stage(
    encode: Callable[[Any], Any],
    decode: Callable[[Any], Any],
    factor: int,
    tile: int,
    overlap: int | None = None,
) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """Wraps a first stage to work in tiles.

    Args:
      encode: Function of images [B, H, W, C] -> latents [B, H / f, W / f, c].
      decode: Function of latents [B, h, w, c] -> images [B, f h, f w, C].
      factor: Downsampling factor f of the first stage.
      tile: Side of a tile in pixels, a multiple of f. An axis of the image that is no
        longer is not cut.
      overlap: Minimum number of pixels that neighbours share, a multiple of f, at most
        half a tile; a quarter by default.

    Returns:
      (encode, decode) of the same arguments.

    Raises:
      ValueError: If a size is not a multiple of f, or the overlap is too large.
    """
    overlap = tile // 4 // factor * factor if overlap is None else overlap
    check_tile(factor, tile, overlap)
    size = {"tile": tile // factor, "overlap": overlap // factor}

    def encode_tiles(images):
        check_image(images, factor)
        return map_tiles(encode, images, **size, zooms=(factor, 1))

    def decode_tiles(latents):
        return map_tiles(decode, latents, **size, zooms=(1, factor))

    return encode_tiles, decode_tiles


def tile_backbone(
    backbone: Callable[..., Any], tile: int, multiple: int = 1, at_once: int = 4
) -> Callable[..., Any]:
    """Wraps a backbone to work in tiles, for sizes that it was not trained on.

    Neighbours share half a tile, as in CompVis's convolutional sampling. Maps are cut
    together with the latents; every tile gets all tokens and vectors.

    Args:
      backbone: Function (latents, timesteps, context, concat, vector) -> [B, h, w, c].
      tile: Side of a tile in latents, ideally the size of training.
      multiple: Sides of tiles must be multiples of this, the `size_multiple` of the
        backbone.
      at_once: Maximum number of tiles of an example per evaluation, to bound memory.

    Returns:
      Function of the same arguments, for latents of any height and width of at least
      `multiple`. Latents as large as a tile are not cut.

    Raises:
      ValueError: If `tile` is not a positive multiple of `multiple`.
    """
    if tile < 1 or tile % multiple:
        raise ValueError(
            f"tile={tile} is not of a size that the backbone takes, which is a "
            f"multiple of {multiple}; use "
            f"tile={max(-(-tile // multiple), 1) * multiple}"
        )

    def tiled(latents, timesteps, context=None, concat=None, vector=None):
        """Applies the backbone to overlapping tiles of latents [B, h, w, c]."""
        if concat is not None:
            # A constant map may have only one cell.
            shape = (*latents.shape[:3], concat.shape[-1])
            concat = jnp.broadcast_to(concat, shape)

        def evaluate(tiles):
            count = len(tiles[0]) // len(latents)
            times, tokens, vectors = jax.tree.map(
                lambda array: jnp.repeat(array, count, axis=0),
                (timesteps, context, vector),
            )
            return backbone(tiles[0], times, tokens, tiles[1], vectors)

        size = {"tile": tile, "overlap": tile // 2, "multiple": multiple}
        return map_tiles(evaluate, (latents, concat), **size, at_once=at_once)

    return tiled


def map_tiles(
    function: Callable[[Any], Any],
    arrays: Any,
    tile: int,
    overlap: int,
    *,
    zooms: tuple[int, int] = (1, 1),
    multiple: int = 1,
    at_once: int = 1,
) -> Any:
    """Applies a function to tiles and blends the results.

    Args:
      function: Function of a pytree like `arrays`, tiles [B N, t, t', c] -> array
        [B N, ...]. The N tiles of an example are adjacent on the batch axis, so that a
        sharded batch stays on its devices.
      arrays: Pytree of arrays [B, height, width, c].
      tile: Side of a tile in cells.
      overlap: Minimum number of cells that neighbours share.
      zooms: Side of a cell in the arrays and in the result.
      multiple: See `cut_axis`.
      at_once: Maximum number of tiles of an example per call.

    Returns:
      float32 [B, height, width, c'], with height and width times zooms[1] / zooms[0].
      If one tile is enough, the result of `function` on the whole.
    """
    zoom_in, zoom_out = zooms
    batch, *size = jax.tree.leaves(arrays)[0].shape[:3]
    cuts = [cut_axis(length // zoom_in, tile, overlap, multiple) for length in size]
    rows, columns = (len(cut.starts) for cut in cuts)
    count = rows * columns
    if count == 1:
        return function(arrays)
    calls = -(-count // at_once)
    per_call = -(-count // calls)

    def split(array):
        down, across = (spans(cut, zoom_in) for cut in cuts)
        tiles = [array[:, i, j] for i in down for j in across]
        # The last call is padded with copies, which are removed below.
        tiles += tiles[-1:] * (calls * per_call - count)
        tiles = jnp.stack(tiles).reshape(calls, per_call, *tiles[0].shape)
        return tiles.swapaxes(1, 2).reshape(calls, -1, *tiles.shape[3:])

    parts = jax.lax.map(function, jax.tree.map(split, arrays)).astype(jnp.float32)
    parts = parts.reshape(calls, batch, per_call, *parts.shape[2:]).swapaxes(1, 2)
    parts = parts.reshape(-1, *parts.shape[2:])[:count]
    parts = parts.reshape(rows, columns, *parts.shape[1:])
    strips = [_blend(row, cuts[1], zoom_out, axis=2) for row in parts]
    return _blend(strips, cuts[0], zoom_out, axis=1)


def _blend(parts, cut, zoom, axis):
    """Sums weighted tiles [B, t, t', c] along an axis."""
    result = 0
    for part, span, row in zip(
        parts, spans(cut, zoom), weights(cut, zoom), strict=True
    ):
        margins = [(0, 0)] * part.ndim
        margins[axis] = (span.start, cut.length * zoom - span.stop)
        row = row.reshape([-1 if i == axis else 1 for i in range(part.ndim)])
        result += jnp.pad(row * part, margins)
    return result
