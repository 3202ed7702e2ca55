"""Text to image on `shapes` at 32 px, with a jointly trained transformer for captions.

    python train.py --config=configs/shapes_text.py --workdir=runs/text \
        --config.first_stage.workdir=runs/scenes
    python sample.py --workdir=runs/text --outdir=runs/text/samples \
        --prompt="a huge red star on a dark blue background"
    python -m ldm_jax.evaluation.shapes --workdir=runs/text --outdir=runs/text/adherence

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
        inputs=dict(caption=shapes_tasks.caption()),
        conditions=dict(caption=shapes_tasks.tokens("text")),
        transformer_depth=1,
        guidance_scale=3.0,
        num_steps=3000,
    )
