"""Super-resolution on `shapes`, 8 to 32 px: the small image is stacked on the latents.

    python train.py --config=configs/shapes_super_resolution.py --workdir=runs/sr \
        --config.first_stage.workdir=runs/scenes
    python sample.py --workdir=runs/sr --outdir=runs/sr/samples --low_res=small.png
    python -m ldm_jax.evaluation.shapes --workdir=runs/sr --outdir=runs/sr/adherence

Data and first stage: see `shapes_tasks.py`.  Made for two CPU cores; see the README for
its results.  Variants: how images are downsampled, "bicubic" (the default), "bsrgan" or
"bsrgan_light", and "tiny" (four steps, for tests): `bsrgan_light,tiny`.
"""

from configs import common, shapes_tasks

_DEGRADATIONS = ("bicubic", "bsrgan", "bsrgan_light")


def get_config(variant=""):
    """Makes the config.

    Args:
      variant: A degradation, "tiny" or both.

    Returns:
      ConfigDict.
    """
    degradation, words = common.parse_variant(variant, _DEGRADATIONS, words=("tiny",))
    return shapes_tasks.config(
        ",".join(words),
        inputs=dict(low_res=dict(kind="low_res", factor=4, degradation=degradation)),
        # The small images are as large as the latents.
        conditions=dict(low_res=dict(kind="raw", slot="concat")),
    )
