"""Overlapping tiles, for images and latents larger than memory or training sizes.

`host.py` loops over tiles on the host, for images of any size with one compiled
program. `program.py` works within a compiled program, such as the sampling loop: it
wraps a function so that it works in tiles, with the same arguments. `cuts.py` is used
by both.

Where tiles overlap, the outer quarter of the overlap is only context, which keeps the
convolutions' padding out of the result, and tiles are blended over its middle half. So
a network whose receptive field is within that quarter gives the same result as on the
whole. That of the published networks is larger: their group norms and attention cover
one tile instead of the whole. Tiles then differ a little, in colour and contrast if
they are images, and blending smooths the difference.
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
