"""Depth and text to image on `shapes` at 32 px: two conditions in two slots.

    python train.py --config=configs/shapes_depth.py --workdir=runs/depth \
        --config.first_stage.workdir=runs/scenes
    python sample.py --workdir=runs/depth --outdir=runs/depth/samples \
        --depth=depth.png --prompt="a large green heart on red stripes" \
        --guidance_scale=caption=3,depth=1
    python -m ldm_jax.evaluation.shapes --workdir=runs/depth \
        --outdir=runs/depth/adherence

In a depth map, farther objects are brighter.  Data and first stage: see
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
        inputs=dict(caption=shapes_tasks.caption(), depth=dict(kind="depth")),
        conditions=dict(
            caption=shapes_tasks.tokens("text"),
            depth=dict(kind="spatial", num_stages=2),
        ),
        transformer_depth=1,
        guidance_scale=2.0,
        num_steps=3000,
    )
