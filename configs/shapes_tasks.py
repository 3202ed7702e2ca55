"""Every condition of the paper on `shapes` at 32 px, scenes of up to four shapes.

    python -m ldm_jax.data.shapes --image_size=32 --num_train=20000
    python train.py --config=configs/shapes_autoencoder.py --workdir=runs/scenes \
        --config.data.name=shapes/32
    python train.py --config=configs/shapes_tasks.py:text --workdir=runs/text \
        --config.first_stage.workdir=runs/scenes
    python sample.py --workdir=runs/text --outdir=runs/text_samples \
        --prompt="a huge red star on a white background"

row               what the denoiser is told
text              a caption, by cross-attention to a transformer trained with it
layout            boxes with their classes, as tokens, likewise
semantic          a class per pixel, beside the latents
super_resolution  the picture at 8 px, beside the latents
bsrgan            the same, blurred, noisy and compressed by BSRGAN-light
inpainting        the picture with a hole and the hole, beside the latents
depth             a depth map beside the latents and a caption

Made for some minutes on two CPU cores each; the README says what they reach.  Variants:
a row, "tiny" (a toy for tests) or both, as `layout,tiny`.
"""

from configs import common, shapes_class

_CAPTION = dict(kind="caption", tokenizer="shapes", max_length=48)
_TEXT = dict(
    kind="text",
    # The tokenizer says these.
    vocab_size=None,
    max_length=None,
    null_ids=None,
    features=64,
    num_layers=2,
    num_heads=2,
    dropout=0.1,
)
_LOW_RES = dict(kind="low_res", factor=4)
_BESIDE = dict(kind="raw", slot="concat", dropout=0.1)

# Attention to tokens takes transformer blocks; mirrored scenes would belie "left".
_TOKENS = dict(flip=False, transformer_depth=1)
_MAPS = dict(flip=True, transformer_depth=0)

# What sets the rows apart.  The first is the default.
ROWS = {
    "text": dict(
        _TOKENS, inputs=dict(caption=_CAPTION), conditions=dict(caption=_TEXT)
    ),
    "layout": dict(
        _TOKENS,
        inputs=dict(
            boxes=dict(kind="layout", num_classes=8, vocab_size=257, max_objects=4)
        ),
        conditions=dict(
            boxes=dict(
                kind="layout",
                vocab_size=257,
                max_length=14,
                features=64,
                num_layers=2,
                num_heads=2,
                dropout=0.1,
            )
        ),
    ),
    "semantic": dict(
        _MAPS,
        inputs=dict(segmentation=dict(kind="segmentation")),
        conditions=dict(
            segmentation=dict(
                kind="spatial", num_stages=2, num_classes=9, features=16, dropout=0.1
            )
        ),
    ),
    "super_resolution": dict(
        _MAPS,
        inputs=dict(low_res=dict(_LOW_RES, degradation="bicubic")),
        conditions=dict(low_res=_BESIDE),
    ),
    "bsrgan": dict(
        _MAPS,
        inputs=dict(low_res=dict(_LOW_RES, degradation="bsrgan_light")),
        conditions=dict(low_res=_BESIDE),
    ),
    "inpainting": dict(
        _MAPS,
        inputs=dict(masked_image=dict(kind="masked_image")),
        conditions=dict(masked_image=dict(kind="masked_image", dropout=0.1)),
    ),
    "depth": dict(
        _TOKENS,
        inputs=dict(depth=dict(kind="depth"), caption=_CAPTION),
        conditions=dict(
            depth=dict(kind="spatial", num_stages=2, dropout=0.1), caption=_TEXT
        ),
    ),
}


def get_config(variant=""):
    """Returns the config; `variant` is a row of ROWS, "tiny" or both."""
    row, words = common.parse_variant(variant, ROWS, words=("tiny",))
    row = ROWS[row]
    base = shapes_class.get_config()
    config = common.diffusion(
        data=common.data(
            name="shapes/32", image_size=32, flip=row["flip"], inputs=row["inputs"]
        ),
        conditions=row["conditions"],
        unet=base.unet,
        schedule=base.schedule,
        train=base.train,
        sample=base.sample,
    )
    config.unet.transformer_depth = row["transformer_depth"]
    config.sample.guidance_scale = 2.0
    config.train.num_steps = 1800
    if words:
        common.shrink_diffusion(config)
    return config
