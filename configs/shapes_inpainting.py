"""Inpainting on `shapes` at 32 px: conditions are the encoded masked image and mask.

    python train.py --config=configs/shapes_inpainting.py --workdir=runs/inpainting \
        --config.first_stage.workdir=runs/scenes
    python sample.py --workdir=runs/inpainting --outdir=runs/inpainting/samples \
        --image=image.png --mask=mask.png
    python -m ldm_jax.evaluation.shapes --workdir=runs/inpainting \
        --outdir=runs/inpainting/adherence

Masks are boxes, strokes and borders, white where the image is to be filled.
Data and first stage: see `shapes_tasks.py`.  Made for two CPU cores; see the README for
its results.  Variants: `:tiny` (four steps, for tests).
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
        inputs=dict(masked_image=dict(kind="masked_image", style="mixed")),
        conditions=dict(masked_image=dict(kind="masked_image")),
    )
