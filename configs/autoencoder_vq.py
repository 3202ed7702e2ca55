"""VQ first stages of the paper (Table 8), on ImageNet 256.

    python train.py --config=configs/autoencoder_vq.py:f4 --workdir=runs/vq_f4 \
        --config.data.data_dir=gs_or_local_path_of_prepared_imagenet2012

row       codes  latents        parameters   batch      steps  R-FID   PSNR  SSIM  TFLOP
f2         2048  128 x 128 x 2  12,786,577      64    533,066   0.16  30.85  0.91  1.83
f2_n64       64  128 x 128 x 2  12,782,609      64    533,066   0.40  29.13  0.90  1.83
f4         8192  64 x 64 x 3    55,322,782      64    533,066   0.58  27.43  0.82  2.81
f4_noattn  8192  64 x 64 x 3    53,219,486      64    658,131   1.06  25.21  0.76  2.56
f4_n256     256  64 x 64 x 3    55,298,974      64    533,066   0.47  26.43  0.80  2.81
f8        16384  32 x 32 x 4    67,717,295      80    971,043   1.14  23.07  0.65  1.93
f8_n256     256  32 x 32 x 4    67,652,783      80  1,608,649   1.49  22.35  0.62  1.93
f16       16384  16 x 16 x 8    69,593,371     112  1,101,166   5.15  20.83  0.54  1.12
f32       16384  8 x 8 x 16    103,384,755     112  1,101,166  31.83  17.45  0.41  1.11

Published: R-FID, PSNR and SSIM on ImageNet-val at 256 px, of models that CompVis
trained on crops of OpenImages, f4 in 29 and f8 in 66 V100-days (Table 18); not
reproduced here.  f2, f2_n64, f4_n256 and f32 were never released: their networks and
steps follow similar rows, and f2 has no attention, which at 128 x 128 positions would
nearly double its cost.  Batch sizes are eight times CompVis's per GPU, for eight
accelerators; how many CompVis used is not published.  TFLOP is per image and training
step, without the discriminator.  The published models were trained with the perceptual
loss: set `loss.lpips_weights`, or `loss.perceptual_weight=0` to train without it.

Variants, joined by commas: a row; `decoder` (fine-tunes the decoder alone, see
`train.init_from`); `tiny` (a toy model for a laptop).
"""

from configs import common, published

_F2 = dict(
    channel_mult=(1, 2),
    z_channels=2,
    mid_attention=False,
    batch_size=64,
    num_steps=533_066,
    disc_start=0,
)
_F4 = dict(
    channel_mult=(1, 2, 4), z_channels=3, batch_size=64, num_steps=533_066, disc_start=0
)
_F8 = dict(
    channel_mult=(1, 2, 2, 4), attention_factors=(8,), z_channels=4, batch_size=80
)
_F16 = dict(num_codes=16384, batch_size=112, num_steps=1_101_166, disc_start=250_001)

# How the rows differ.  The first is the default.
ROWS = {
    "f4": dict(_F4, num_codes=8192),
    "f2": dict(_F2, num_codes=2048),
    "f2_n64": dict(_F2, num_codes=64),
    "f4_noattn": dict(
        _F4, num_codes=8192, mid_attention=False, num_steps=658_131, disc_start=11
    ),
    "f4_n256": dict(_F4, num_codes=256),
    "f8": dict(
        _F8,
        num_codes=16384,
        num_steps=971_043,
        disc_start=1,
        disc_weight=0.6,
        disc_layers=2,
    ),
    "f8_n256": dict(_F8, num_codes=256, num_steps=1_608_649, disc_start=250_001),
    "f16": dict(
        _F16,
        channel_mult=(1, 1, 2, 2, 4),
        attention_factors=(16,),
        z_channels=8,
        disc_layers=2,
    ),
    "f32": dict(
        _F16,
        channel_mult=(1, 1, 2, 2, 4, 4),
        attention_factors=(16, 32),
        z_channels=16,
        disc_layers=2,
    ),
}


def get_config(variant=""):
    """Makes the config.

    Args:
      variant: A row of ROWS, "decoder", "tiny" or several.

    Returns:
      ConfigDict.
    """
    row, words = common.parse_variant(variant, ROWS)
    fields = dict(ROWS[row])
    loss = dict(
        disc_start=fields.pop("disc_start"),
        disc_weight=fields.pop("disc_weight", 0.75),
    )
    layers = fields.pop("disc_layers", 3)
    config = published.autoencoder("vq", quantizer="nearest", **fields)
    config.loss.update(loss)
    config.discriminator.num_layers = layers
    return common.vary_autoencoder(config, words)
