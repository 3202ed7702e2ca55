"""Variations of an image on `shapes` at 32 px, by a jointly learned embedding.

    python train.py --config=configs/shapes_variations.py --workdir=runs/variations \
        --config.first_stage.workdir=runs/scenes
    python sample.py --workdir=runs/variations --outdir=runs/variations/samples \
        --style=image.png
    python -m ldm_jax.evaluation.shapes --workdir=runs/variations \
        --outdir=runs/variations/adherence

A vision transformer encodes each image as 16 numbers, which condition the denoiser, as
in a diffusion autoencoder (Preechakul et al. 2022).  CLIP's frozen image encoder in its
place (`conditions.style.weights`) needs no training.  Data and first stage: see
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
        inputs=dict(style=dict(kind="image")),
        conditions=dict(
            style=dict(
                kind="clip_image",
                slot="vector",
                frozen=False,
                image_size=32,
                patch_size=4,
                width=64,
                num_layers=2,
                num_heads=4,
                head_channels=16,
                embed_dim=16,
                features=256,
            )
        ),
        guidance_scale=2.0,
    )
