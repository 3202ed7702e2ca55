"""What a run does with images that it does not train on.

| module | what |
| --- | --- |
| `actions` | when what is due: evaluation, measurement, previews; what has no record |
| `own_reference` | reference statistics of the run's own images |
| `noise_levels` | the second stage's loss by noise level |
| `run_metrics` | measures sets of images, keeps the best checkpoint |
| `made_images` | the images of a stage that are measured |
| `eval_options` | the section `eval` of a config |
| `shown_conditions` | images of conditions, for previews |
"""

from ldm_jax.training.held_out.actions import HeldOut, due

__all__ = ["HeldOut", "due"]
