"""Semantic synthesis on `shapes` at 32 px: a map of classes beside the latents.

    python train.py --config=configs/shapes_semantic.py --workdir=runs/semantic \
        --config.first_stage.workdir=runs/scenes
    python sample.py --workdir=runs/semantic --outdir=runs/semantic/samples \
        --segmentation=map.png
    python -m ldm_jax.evaluation.shapes --workdir=runs/semantic \
        --outdir=runs/semantic/adherence

In a map 0 is the ground and k + 1 is class k.  Data and first stage: see
`shapes_tasks.py`.  Made for two CPU cores; see the README for what it reaches.
Variants: `:tiny` (four steps, for tests).
"""

from configs import shapes_tasks


def get_config(variant=""):
    """Makes the config.

    Args:
      variant: "" or "tiny".

    Returns:
      ConfigDict.
    """
    return shapes_tasks.config(
        variant,
        inputs=dict(segmentation=dict(kind="segmentation")),
        conditions=dict(
            # Fractions of the classes in the pixels of each latent.
            segmentation=dict(kind="spatial", num_stages=2, num_classes=9)
        ),
    )
