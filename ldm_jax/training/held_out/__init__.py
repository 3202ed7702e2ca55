"""What a run does with images that it does not train on.

| module | what |
| --- | --- |
| `actions` | when what is due: evaluation, measurement, previews; what has no record |
| `noise_levels` | the second stage's loss by noise level |
| `eval_options` | the section `eval` of a config |
| `shown_conditions` | pictures of conditions, for previews |
"""

from ldm_jax.training.held_out.actions import HeldOut, due

__all__ = ["HeldOut", "due"]
