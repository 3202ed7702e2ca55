"""Evaluation of a run on held-out images.

| module | content |
| --- | --- |
| `actions` | schedules evaluation, measurement of sets and previews, also missed ones |
| `own_reference` | reference statistics of the run's own images |
| `noise_levels` | the second stage's loss by noise level |
| `run_metrics` | metrics of sets such as FID; keeps the best checkpoint |
| `made_images` | the images of a stage for metrics of sets |
| `eval_options` | the section `eval` of a config |
| `shown_conditions` | images of conditions, for previews |
"""

from ldm_jax.training.held_out.actions import HeldOut, due

__all__ = ["HeldOut", "due"]
