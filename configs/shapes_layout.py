"""Layout to image on `shapes` at 32 px, conditioned on boxes and classes as tokens.

    python train.py --config=configs/shapes_layout.py --workdir=runs/layout \
        --config.first_stage.workdir=runs/scenes
    python sample.py --workdir=runs/layout --outdir=runs/layout/samples \
        --layout=layout.json
    python -m ldm_jax.evaluation.shapes --workdir=runs/layout \
        --outdir=runs/layout/adherence

A layout is a list such as `[{"label": "star", "box": [0.2, 0.2, 0.9, 0.8]}]`; a box is
(ymin, xmin, ymax, xmax) in fractions of the image.  Data and first stage: see
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
        inputs=dict(
            boxes=dict(
                kind="layout",
                # A grid of 8 x 8 corners, one per latent position, and "no object":
                # finer grids take longer to learn.
                vocab_size=65,
                max_objects=4,
                num_classes=8,
                order="area",
            )
        ),
        conditions=dict(boxes=shapes_tasks.tokens("layout")),
        transformer_depth=1,
        head_channels=16,
        guidance_scale=2.0,
        num_steps=4000,
    )
