"""Unconditional models at 256 px (Tables 1 and 12 of the paper).

    python train.py --config=configs/unconditional.py:celebahq --workdir=runs/celebahq \
        --config.first_stage.workdir=runs/vq_f4
    python sample.py --workdir=runs/celebahq --outdir=samples --num_samples=50000 --npz

row       first stage  U-Net        conditions  batch      steps  learning rate
celebahq  vq:f4        274,056,163           0     48    410,000  9.6e-5
ffhq      vq:f4        274,056,163           0     42    635,000  8.4e-5
bedrooms  vq:f4        274,056,163           0     48  1,900,000  9.6e-5
churches  kl:f8        294,966,916           0     96    500,000  5e-5

The first stage is a row of `autoencoder_vq.py` or `autoencoder_kl.py`; the columns
"U-Net" and "conditions" are numbers of parameters.

Published, on 50,000 samples against the whole training set:
celebahq: FID 5.11, precision 0.72, recall 0.49; 500 DDIM steps, eta 0.  14 V100-days.
ffhq: FID 4.98, precision 0.73, recall 0.50; 200 DDIM steps, eta 1.  26 V100-days.
bedrooms: FID 2.95, precision 0.66, recall 0.48; 200 DDIM steps, eta 1.  60 V100-days.
churches: FID 4.02, precision 0.64, recall 0.52; 400 DDIM steps, eta 0.  18 V100-days.
For churches the paper gives 200 steps in Table 1 and 100 in Table 18, the released
model's page 400.  All were trained on one A100, counted as 2.2 V100.

celebahq and the LSUN rows are prepared TensorFlow data sets (celeb_a_hq/256,
lsun/bedroom, lsun/church_outdoor); ffhq is a folder of that name with the images, in
`--config.data.data_dir`.  Variants: a row, `tiny` (a toy model for a laptop) or both.
"""

from configs import published

_F4 = dict(
    channels=224,
    channel_mult=(1, 2, 3, 4),
    attention_factors=(2, 4, 8),
    head_channels=32,
)

# How the rows differ.  The first is the default.
ROWS = {
    "celebahq": dict(
        data=dict(
            name="celeb_a_hq/256", split="train[:25000]", eval_split="train[25000:]"
        ),
        backbone=_F4,
        train=dict(batch_size=48, num_steps=410_000, learning_rate=9.6e-5),
        sample=dict(num_steps=500, eta=0.0),
    ),
    "ffhq": dict(
        data=dict(source="folder", name="ffhq", validation_fraction=1 / 7),
        backbone=_F4,
        train=dict(batch_size=42, num_steps=635_000, learning_rate=8.4e-5),
        sample=dict(num_steps=200, eta=1.0),
    ),
    "bedrooms": dict(
        data=dict(name="lsun/bedroom", flip=True),
        backbone=_F4,
        train=dict(batch_size=48, num_steps=1_900_000, learning_rate=9.6e-5),
        sample=dict(num_steps=200, eta=1.0),
    ),
    "churches": dict(
        data=dict(name="lsun/church_outdoor", flip=True),
        backbone=dict(
            channels=192,
            channel_mult=(1, 2, 2, 4, 4),
            attention_factors=(1, 2, 4, 8),
            num_heads=8,
            scale_shift_norm=True,
            resblock_updown=True,
        ),
        schedule=dict(beta_end=0.0155),
        loss=dict(loss_type="l1"),
        train=dict(
            batch_size=96,
            num_steps=500_000,
            learning_rate=5e-5,
            warmup_steps=10_000,
        ),
        sample=dict(num_steps=400, eta=0.0),
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
