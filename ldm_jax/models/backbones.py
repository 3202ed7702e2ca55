"""The table of denoisers by kind, and their interface.

A backbone is a linen module that predicts the noise (or another target) in noisy
latents. Its fields are the config section `backbone`: `out_channels`, which is set from
the first stage, `dtype`, the compute type, and any others. It has:

- `__call__(latents, timesteps, context=None, concat=None, vector=None, *, train=False)`
  with latents [B, h, w, c], timesteps [B], and the three conditioning slots: tokens
  [B, L, D], maps [B, h, w, c'] or [B, 1, 1, c'], and vectors [B, E]. It returns float32
  [B, h, w, out_channels], and raises ValueError for a slot or a size that it does not
  support. `train` only turns dropout on (rng "dropout"), if there is any. Weights are
  initialised with `parameters.denoiser_init` and the output with zeros; early training
  was measured with these (benchmarks/RESULTS.md).
- `size_multiple`: height and width of the latents must be multiples of this.
- `vector_width`: the width E of a vector, for conditions that do not set theirs.
- `identity()`: the settings that the weights depend on beyond their names and shapes,
  for example the number of heads of a width; JSON-like. They are compared when a run
  starts from the weights of another.
- `field_ranges`: the allowed values of its fields, field -> Check (`ldm_jax.ranges`:
  `whole(1, 1024)`, `real(0, 1)`); for others an error names the config key. Conditions
  on several fields are checked in a method `check_fields()`, which raises ValueError.
- `tiny`: fields of a tiny version, which replace those of the section if the config key
  `backbone.tiny` is set.

To add one, write the module in a file of this folder and add a row here;
docs/extending.md has an example.
"""

from ldm_jax.models.unet import UNet

BACKBONES = {"unet": UNet}
