"""Inpainting on Places (Tables 6, 7 and 15 of the paper).

    python train.py --config=configs/inpainting.py:big --workdir=runs/inpainting \
        --config.first_stage.workdir=runs/vq_f4_noattn
    python sample.py --workdir=runs/inpainting --outdir=samples --image=image.png \
        --mask=mask.png

row   first stage   U-Net        conditions  batch    steps  learning rate
big   vq:f4_noattn  387,245,827           0    128  360,000  1.28e-5
base  vq:f4         215,230,467           0    128  360,000  1e-6

The first stage is a row of `autoencoder_vq.py`; the columns "U-Net" and "conditions"
are numbers of parameters.  The masked image is encoded by the first stage and
concatenated to the noisy latents, with the mask, which is 1 where the image is to be
filled.  Masks are boxes, strokes and borders, after those of Suvorov et al. 2022
(LaMa).

Published, on 30,000 crops of Places at 512 px: FID and LPIPS over all masks, then over
those that mask 40 to 50 %:
big: 1.50 and 0.137, 9.39 and 0.246, after another half epoch at 512 px; without it 2.40
  and 0.142, 12.89 and 0.257.
base: 2.15 and 0.144, 11.87 and 0.257; with the first stage vq:f4_noattn 2.37 and 0.145,
  12.60 and 0.259.  Its weights were not released.
50 DDIM steps, eta 0.  base was trained on eight V100.  The batch size of big is that of
base; its learning rate is 1e-7 per image, as released, decaying to a thousandth of that
over 50,000 steps.

The data are the prepared TensorFlow data set places365_small, with images of 256 px;
for training at 512 px use a folder of larger ones.  Variants: a row, `tiny` (a toy
model for a laptop) or both: `base,tiny`.
"""

from configs import published

_COMMON = dict(
    data=dict(name="places365_small", crop="random", flip=True),
    inputs=dict(masked_image=dict(kind="masked_image", style="mixed", fill=-1.0)),
    conditions=dict(
        masked_image=dict(kind="masked_image", mask_first=False, signed_mask=True)
    ),
    schedule=dict(beta_end=0.0205),
    loss=dict(loss_type="l1"),
    sample=dict(num_steps=50, eta=0.0),
)

# How the rows differ.  The first is the default.
ROWS = {
    "big": dict(
        _COMMON,
        backbone=dict(
            channels=256,
            channel_mult=(1, 2, 3, 4),
            attention_factors=(2, 4, 8),
            num_heads=8,
            resblock_updown=True,
        ),
        train=dict(
            batch_size=128,
            num_steps=360_000,
            learning_rate=1.28e-5,
            decay="cosine",
            decay_steps=50_000,
            start_factor=0.01,
            end_factor=0.001,
        ),
    ),
    "base": dict(
        _COMMON,
        # Attention in the middle block only.
        backbone=dict(
            channels=128, channel_mult=(1, 4, 8), attention_factors=(), num_heads=1
        ),
        train=dict(batch_size=128, num_steps=360_000, learning_rate=1e-6),
    ),
}


def get_config(variant=""):
    """Makes the config.

    Args:
      variant: A row of ROWS, "tiny" or both.

    Returns:
      ConfigDict.
    """
    return published.diffusion(variant, ROWS)
