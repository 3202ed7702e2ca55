"""Class-conditional models on ImageNet 256 (Tables 3, 10, 13 and 15 of the paper).

    python train.py --config=configs/imagenet_class.py:f4 --workdir=runs/class_f4 \
        --config.first_stage.workdir=runs/vq_f4
    python sample.py --workdir=runs/class_f4 --outdir=samples --num_steps=250 \
        --guidance_scale=1.5 --num_samples=50000 --npz
    python sample.py --workdir=runs/class_f4 --outdir=birds --labels=22,24

row  first stage  U-Net        conditions  batch      steps  learning rate
f4   vq:f4        400,920,579     512,512   1200    178,000  1e-4
f8   vq:f8        394,984,196     512,000     64  4,800,000  6.4e-5

The first stage is a row of `autoencoder_vq.py`; the columns "U-Net" and "conditions"
are the parameters of the U-Net and of the class embedding.

Published, on 50,000 samples:
f4: FID 10.56, IS 103.49, precision 0.71, recall 0.62; with guidance scale 1.25 FID
  3.95, IS 178.22; with 1.5 FID 3.60, IS 247.67.  250 DDIM steps, eta 0.  271 V100-days.
f8: FID 15.51, IS 79.03, precision 0.65, recall 0.63 (after 2.9 M steps 17.41 and 72.92,
  79 V100-days); with classifier guidance of scale 10 FID 7.76, IS 209.52.  200 DDIM
  steps, eta 1.

The released f4 uses classifier-free guidance: its class 1000 means "no class", which
is trained here by dropping labels.  The released f8 has no such class; for guidance
train it with
`--config.conditions.label.null_class=True --config.conditions.label.dropout=0.1`.
The paper trained on one A100; training f4 costs 0.63 TFLOP per image, with encoding
about 1.  Variants: a row, `tiny` (a toy model for a laptop) or both: `f8,tiny`.
"""

from configs import published

_COMMON = dict(
    data=dict(name="imagenet2012", flip=True),
    conditions=dict(
        label=dict(
            kind="class_label",
            slot="context",
            num_classes=1000,
            features=512,
            null_class=True,
            dropout=0.1,
        ),
    ),
)
_BACKBONE = dict(num_heads=1, transformer_depth=1)

# How the rows differ.  The first is the default.
ROWS = {
    "f4": _COMMON
    | dict(
        backbone=dict(
            _BACKBONE,
            channels=192,
            channel_mult=(1, 2, 3, 5),
            attention_factors=(2, 4, 8),
        ),
        train=dict(batch_size=1200, num_steps=178_000, learning_rate=1e-4),
        sample=dict(num_steps=250, guidance_scale=1.5),
    ),
    "f8": _COMMON
    | dict(
        conditions=dict(
            label=dict(_COMMON["conditions"]["label"], null_class=False, dropout=0.0),
        ),
        backbone=dict(
            _BACKBONE, channels=256, channel_mult=(1, 2, 4), attention_factors=(1, 2, 4)
        ),
        train=dict(batch_size=64, num_steps=4_800_000, learning_rate=6.4e-5),
        sample=dict(num_steps=200, eta=1.0),
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
