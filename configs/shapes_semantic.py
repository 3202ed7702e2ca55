"""Semantic synthesis on `shapes` at 32 px: a segmentation concatenated to the latents.

    python train.py --config=configs/shapes_semantic.py --workdir=runs/semantic \
        --config.first_stage.workdir=runs/scenes
    python sample.py --workdir=runs/semantic --outdir=runs/semantic/samples \
        --segmentation=map.png
    python -m ldm_jax.evaluation.shapes --workdir=runs/semantic \
        --outdir=runs/semantic/adherence

In a segmentation 0 is the background and k + 1 is class k.  Data and first stage: see
`shapes_tasks.py`.  Made for two CPU cores; see the README for its results.  Variants:
`:tiny` (four steps, for tests).
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
            # The fraction of each class among the pixels of a latent position.
            segmentation=dict(kind="spatial", num_stages=2, num_classes=9)
        ),
    )
