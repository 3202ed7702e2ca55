"""Encodes and decodes images larger than memory, in overlapping tiles.

    encode = jax.jit(functools.partial(latent_diffusion.encode, model))
    decode = jax.jit(functools.partial(latent_diffusion.decode, model))
    factor = model.first_stage.downsampling_factor
    latents = encode_tiled(lambda tile: encode(frozen, tile), images, factor)
    images = decode_tiled(lambda tile: decode(frozen, tile), latents, factor)

Arrays stay on the host, one tile at a time is on the device, and all tiles have one
shape, so one program serves all.

Where tiles overlap, the outer quarter of the overlap is context only, which keeps the
padding of the convolutions out of the result, and over its middle half one tile fades
into the next. So a network that looks no further than that quarter gives what it gives
on the whole image. The published first stages look further: their group norms take
statistics, and their attention reaches, over one tile instead of the whole image. Tiles
then differ a little in colour and contrast, and the fade spreads the difference.
"""

import numpy as np


def encode_tiled(encode, images, factor, *, tile=512, overlap=128):
    """Encodes images tile by tile.

    Args:
      encode: Function of images [B, t, t', C] -> latents [B, t / f, t' / f, c], of one
        or few shapes; compile it.
      images: NumPy array [B, H, W, C] of what `encode` takes; H and W multiples of f.
      factor: Downsampling factor f of the first stage.
      tile: Side of a tile in pixels, a multiple of f. An image that is no longer than
        that along an axis is not cut along it.
      overlap: Pixels that neighbours share at least, a multiple of f, at most half a
        tile. The last tile ends with the image and may share more.

    Returns:
      NumPy float32 [B, H / f, W / f, c].

    Raises:
      ValueError: If a size is not a multiple of f, or the overlap is too large.
    """
    height, width = images.shape[1:3]
    if height % factor or width % factor:
        raise ValueError(
            f"an image of {height} x {width} pixels cannot be encoded: both must be "
            f"multiples of the first stage's factor {factor}; pad or crop it"
        )
    size = height // factor, width // factor
    return _apply_tiled(encode, images, size, factor, tile, overlap, (factor, 1))


def decode_tiled(decode, latents, factor, *, tile=512, overlap=128):
    """Decodes latents tile by tile.

    Args:
      decode: Function of latents [B, t, t', c] -> images [B, f t, f t', C], of one or
        few shapes; compile it.
      latents: NumPy array [B, h, w, c].
      factor: Downsampling factor f of the first stage.
      tile: Side of a tile in pixels of the image, see `encode_tiled`.
      overlap: Overlap in pixels of the image, see `encode_tiled`.

    Returns:
      NumPy float32 [B, f h, f w, C].

    Raises:
      ValueError: See `encode_tiled`.
    """
    size = latents.shape[1:3]
    return _apply_tiled(decode, latents, size, factor, tile, overlap, (1, factor))


def _apply_tiled(function, array, size, factor, tile, overlap, zooms):
    """Applies a function to tiles and blends what it gives.

    Args:
      function: (part of the array) -> array of the same size times zooms[1] / zooms[0].
      array: NumPy [B, height, width, channels].
      size: Height and width in latents.
      factor: Pixels per latent.
      tile: Side of a tile in pixels.
      overlap: Overlap in pixels.
      zooms: Cells per latent of the array and of the result.
    """
    _check(factor, tile, overlap)
    axes = [_cut(length, tile // factor, overlap // factor) for length in size]
    zoom_in, zoom_out = zooms
    (heights, widths), result = ([_weights(*a, zoom_out) for a in axes]), None

    def parts():
        for top, down in zip(axes[0][0], heights, strict=True):
            for left, across in zip(axes[1][0], widths, strict=True):
                rows = _span(top, axes[0][1], zoom_in)
                columns = _span(left, axes[1][1], zoom_in)
                weights = (down[:, None] * across)[..., None]
                yield (top, left), weights, function(array[:, rows, columns])

    for (top, left), weights, part in one_behind(parts()):
        part = np.asarray(part, np.float32)
        if result is None:
            height, width = (length * zoom_out for length in size)
            result = np.zeros((len(array), height, width, part.shape[-1]), np.float32)
        rows = _span(top, axes[0][1], zoom_out)
        columns = _span(left, axes[1][1], zoom_out)
        result[:, rows, columns] += weights * part
    return result


def _check(factor, tile, overlap):
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


def _cut(length, tile, overlap):
    """Cuts an axis; returns (first cells of the tiles, tile, overlap, length)."""
    tile = min(tile, length)
    overlap = min(overlap, tile // 2)
    count = 1 + -(-(length - tile) // (tile - overlap))
    starts = [min(i * (tile - overlap), length - tile) for i in range(count)]
    return starts, tile, overlap, length


def _weights(starts, tile, overlap, length, zoom):
    """Weights of each tile's cells along an axis; over all tiles they sum to one."""
    tile, overlap, length = tile * zoom, overlap * zoom, length * zoom
    # 0 over the first quarter of the overlap, 1 over the last, a line between them.
    ramp = (np.arange(overlap) + 0.5 - overlap / 4) / max(overlap / 2, 1)
    ramp = np.clip(ramp, 0, 1)
    rows, total = [], np.zeros(length)
    for start in (start * zoom for start in starts):
        row = np.ones(tile)
        if start:
            row[:overlap] = ramp
        if start + tile < length:
            row[tile - overlap :] = ramp[::-1]
        total[start : start + tile] += row
        rows.append((start, row))
    return [
        (row / total[start : start + tile]).astype(np.float32) for start, row in rows
    ]


def _span(start, count, zoom):
    return slice(start * zoom, (start + count) * zoom)


def one_behind(results):
    """Yields results one step late: reading one, the device is at work on the next."""
    late = []
    for result in results:
        yield from late
        late = [result]
    yield from late
