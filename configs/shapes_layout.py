"""Layout to image on `shapes` at 32 px: boxes and their classes, as tokens.

    python train.py --config=configs/shapes_layout.py --workdir=runs/layout \
        --config.first_stage.workdir=runs/autoencoder
    python sample.py --workdir=runs/layout --outdir=runs/layout/samples \
        --layout=layout.json
    python -m ldm_jax.evaluation.obedience --workdir=runs/layout \
        --outdir=runs/layout/obeys

A layout is a list such as `[{"label": "star", "box": [0.2, 0.2, 0.9, 0.8]}]`; a box is
(ymin, xmin, ymax, xmax) in shares of the picture.  Data and first stage: see
`shapes_tasks.py`.  Made for two CPU cores; see the README for what it reaches.
Variants: `:tiny` (four steps, for tests).
"""

from configs import shapes_tasks


def get_config(variant=""):
    """Returns the config; `variant` is "" or "tiny"."""
    return shapes_tasks.config(
        variant,
        # A grid of 32 x 32 corners, one per pixel, and the id of "no object".
        inputs=dict(
            boxes=dict(kind="layout", vocab_size=1025, max_objects=4, num_classes=8)
        ),
        conditions=dict(boxes=shapes_tasks.tokens("layout")),
        transformer_depth=1,
        guidance_scale=2.0,
    )
