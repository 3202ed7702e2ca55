"""Denoisers by kind, and what they have in common.

A backbone is a linen module that estimates the noise (or another target) in noisy
latents. Its fields are the config section `backbone`: `out_channels`, which follows
from the first stage, `dtype`, the compute type, and what else it wants. It has:

- `__call__(latents, timesteps, context=None, concat=None, vector=None, *, train=False)`
  with latents [B, h, w, c], timesteps [B], and the three slots of a condition: tokens
  [B, L, D], maps [B, h, w, c'] or [B, 1, 1, c'], and vectors [B, E]. It returns float32
  [B, h, w, out_channels], and raises ValueError for a slot or a size that it does not
  take. `train` turns dropout on (rng "dropout"), where there is any, nothing else.
  Weights start as `parameters.denoiser_init` draws them, and the output at zero: what
  is learnt first was measured so (benchmarks/RESULTS.md).
- `size_multiple`: what height and width of the latents must be multiples of.
- `vector_width`: the width E of a vector, for conditions that leave theirs open.
- `identity()`: what the weights mean beyond what their names and shapes say, for
  example in how many heads a width is cut; JSON-like. A run that starts from the
  weights of another compares the two.
- `field_ranges`: what its fields may be, field -> Check (`ldm_jax.ranges`: `whole(1,
  1024)`, `real(0, 1)`); other values are refused by the config key. What fields must be
  together it checks in a method `check_fields()`, which raises ValueError.
- `tiny`: fields of a toy of it, which the config key `backbone.tiny` puts in place of
  the section's own.

To add one, write the module in a file of this folder and add a row here;
docs/extending.md has an example.
"""

from ldm_jax.models.unet import UNet

BACKBONES = {"unet": UNet}
