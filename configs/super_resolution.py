"""Super-resolution from 64 to 256 px (Tables 5, 11 and 15 of the paper).

    python train.py --config=configs/super_resolution.py:bicubic --workdir=runs/sr \
        --config.first_stage.workdir=runs/vq_f4
    python sample.py --workdir=runs/sr --outdir=samples --low_res=small.png
    python sample.py --workdir=runs/sr --outdir=samples --low_res=small.png \
        --height=512 --width=768

row      first stage  U-Net        conditions  batch    steps  learning rate
bsr      vq:f4        113,622,563           0     64  860,000  6.4e-5
bicubic  vq:f4        113,622,563           0     64  860,000  6.4e-5

The first stage is a row of `autoencoder_vq.py`; the columns "U-Net" and "conditions"
are numbers of parameters; with those of the first stage they are the paper's 169 M.
The low-resolution image is concatenated to the latents unchanged: both have a quarter
of the image's size.

Published:
bicubic, on ImageNet-val: FID 2.8 against features of the validation set and 4.8 against
  those of the training set, IS 166.3, PSNR 24.4, SSIM 0.69; 100 DDIM steps.  With 15
  more epochs 2.6, 4.6, 169.76, 24.4 and 0.69.  Its weights were not released.
bsr, on OpenImages with the milder BSRGAN degradations: images, no numbers; its steps
  are those of bicubic.  The released demo samples 100 steps with eta 1.
The paper trained on one A100.

Both are prepared TensorFlow data sets (imagenet2012, open_images_v4/300k).  Variants: a
row, `tiny` (a toy model for a laptop) or both: `bicubic,tiny`.
"""

from configs import published


def _row(name, degradation, **sections):
    """Makes a row: the same network for a data set and a degradation."""
    return dict(
        data=dict(name=name, crop="random", min_crop=0.5, flip=True),
        inputs=dict(low_res=dict(kind="low_res", factor=4, degradation=degradation)),
        conditions=dict(low_res=dict(kind="raw", slot="concat")),
        backbone=dict(
            channels=160,
            channel_mult=(1, 2, 2, 4),
            attention_factors=(8,),
            head_channels=32,
        ),
        schedule=dict(beta_end=0.0155),
        train=dict(batch_size=64, num_steps=860_000, learning_rate=6.4e-5),
        **sections,
    )


# How the rows differ.  The first is the default.
ROWS = {
    "bsr": _row(
        "open_images_v4/300k", "bsrgan_light", sample=dict(num_steps=100, eta=1.0)
    ),
    "bicubic": _row("imagenet2012", "bicubic", sample=dict(num_steps=100)),
}


def get_config(variant=""):
    """Makes the config.

    Args:
      variant: A row of ROWS, "tiny" or both.

    Returns:
      ConfigDict.
    """
    return published.diffusion(variant, ROWS)
