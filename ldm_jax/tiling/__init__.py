"""Images and latents larger than memory or training, in overlapping tiles.

`host.py` applies a first stage on the host, for images of any size through one compiled
program. `program.py` cuts within a compiled program, where the sampling loop is: it
wraps a function of the whole into one of the same arguments. `cuts.py` is what both
share.

Where tiles overlap, the outer quarter of the overlap is context only, which keeps the
padding of the convolutions out of the result, and over its middle half one tile fades
into the next. So a network that looks no further than that quarter gives what it gives
on the whole. The published networks look further: their group norms take statistics,
and their attention reaches, over one tile instead of the whole. Tiles then differ a
little, in colour and contrast if they are images, and the fade spreads the difference.
"""

from ldm_jax.tiling.host import decode_tiled, encode_tiled, one_behind
from ldm_jax.tiling.program import map_tiles, tile_backbone, tile_first_stage

__all__ = [
    "decode_tiled",
    "encode_tiled",
    "map_tiles",
    "one_behind",
    "tile_first_stage",
    "tile_backbone",
]
