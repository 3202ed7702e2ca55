"""Landscapes from segmentation maps (Sec. 4.3.2 and Table 15 of the paper).

    python train.py --config=configs/semantic_synthesis.py:256 \
        --workdir=runs/semantic --config.first_stage.workdir=runs/vq_f4
    python train.py --config=configs/semantic_synthesis.py:512 \
        --workdir=runs/semantic_512 --config.first_stage.workdir=runs/vq_f4 \
        --config.train.init_from=runs/semantic
    python sample.py --workdir=runs/semantic_512 --outdir=samples \
        --segmentation=segmentation.png --height=512 --width=1024

row  first stage  U-Net        conditions  batch    steps  learning rate
256  vq:f4        215,229,315         546     48  360,000  4.8e-5
512  vq:f4        215,229,315         546      8   50,000  8e-6

The first stage is a row of `autoencoder_vq.py`; the columns "U-Net" and "conditions"
are the parameters of the U-Net and of the network that resizes the segmentation to the
latents' size.  The segmentation has the 182 classes of COCO-Stuff, each a channel that
is averaged over 4 x 4 pixels; they are mapped to three channels, which are concatenated
to the latents.

Published: images, no numbers.  Batch size, steps and learning rate of 256 are those of
the paper's Table 15, which lists the same network on latents of f = 8; 512 continues
from 256, its batch size is CompVis's per GPU, its steps are not published.  The paper
trained on one A100.

The data are a folder landscapes in `--config.data.data_dir`, with the segmentation
`x.segmentation.png` beside each image `x.jpg`.  Variants: a row, `tiny` (a toy model
for a laptop) or both: `512,tiny`.
"""

from configs import published

_COMMON = dict(
    inputs=dict(segmentation=dict(kind="segmentation")),
    conditions=dict(
        segmentation=dict(
            kind="spatial",
            num_stages=2,
            method="bilinear",
            multiplier=0.5,
            num_classes=182,
            features=3,
        ),
    ),
    backbone=dict(
        channels=128,
        channel_mult=(1, 4, 8),
        # CompVis's 32, 16 and 8 lie beyond its coarsest level: only the middle block
        # has attention.
        attention_factors=(),
        num_heads=8,
    ),
    schedule=dict(beta_end=0.0205),
    loss=dict(loss_type="l1"),
)
_DATA = dict(source="folder", name="landscapes", crop="random", flip=True)

# How the rows differ.  The first is the default.
ROWS = {
    "256": dict(
        _COMMON,
        data=_DATA,
        train=dict(batch_size=48, num_steps=360_000, learning_rate=4.8e-5),
    ),
    "512": dict(
        _COMMON,
        data=dict(_DATA, image_size=512),
        train=dict(batch_size=8, num_steps=50_000, learning_rate=8e-6),
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
