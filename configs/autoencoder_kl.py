"""KL first stages of the paper (Table 8), on ImageNet 256.

    python train.py --config=configs/autoencoder_kl.py:f8 --workdir=runs/kl_f8 \
        --config.data.data_dir=gs_or_local_path_of_prepared_imagenet2012

row     latents       parameters    batch    steps   R-FID   PSNR  SSIM  TFLOP
f2      128 x 128 x 2 12,787,105       80  176,991   0.086  32.47  0.93  1.83
f4      64 x 64 x 3   55,312,063       80  176,991   0.27   27.53  0.82  2.81
f8      32 x 32 x 4   83,653,863       32  246,803   0.90   24.19  0.69  2.42
f16     16 x 16 x 16  69,610,963       48  442,998   0.87   24.08  0.68  1.13
f16_c8  16 x 16 x 8   69,499,371       48  442,998   2.63   21.94  0.59  1.13
f32     8 x 8 x 64   103,880,131       48  406,763   2.04   22.27  0.61  1.12
f32_c16 8 x 8 x 16   103,197,139       48  406,763   7.3    20.38  0.53  1.12

Published: R-FID, PSNR and SSIM on ImageNet-val at 256 px, of models that CompVis
trained on crops of OpenImages; not reproduced here.  f2, f16_c8 and f32_c16 were never
released: their networks and steps follow similar rows, and f2 has no attention, which
at 128 x 128 positions would nearly double its cost.  Batch sizes are eight times
CompVis's per GPU, for eight accelerators; how many CompVis used is not published.
TFLOP is per image and training step, without the discriminator.  Memory, not
arithmetic, limits the batch: `first_stage.remat=True` saves most of it.  The published
models were trained with the perceptual loss: set `loss.lpips_weights`, or
`loss.perceptual_weight=0` to train without it.

Variants, joined by commas: a row; `decoder` (fine-tunes the decoder alone, see
`train.init_from`); `tiny` (a toy model for a laptop).
"""

from configs import common, published

_F4 = dict(batch_size=80, num_steps=176_991)
_F16 = dict(
    channel_mult=(1, 1, 2, 2, 4),
    attention_factors=(16,),
    batch_size=48,
    num_steps=442_998,
)
_F32 = dict(
    channel_mult=(1, 1, 2, 2, 4, 4),
    attention_factors=(16, 32),
    batch_size=48,
    num_steps=406_763,
)

# How the rows differ.  The first is the default.
ROWS = {
    "f4": dict(_F4, channel_mult=(1, 2, 4), z_channels=3),
    "f2": dict(_F4, channel_mult=(1, 2), z_channels=2, mid_attention=False),
    "f8": dict(
        channel_mult=(1, 2, 4, 4), z_channels=4, batch_size=32, num_steps=246_803
    ),
    "f16": dict(_F16, z_channels=16),
    "f16_c8": dict(_F16, z_channels=8),
    "f32": dict(_F32, z_channels=64),
    "f32_c16": dict(_F32, z_channels=16),
}


def get_config(variant=""):
    """Makes the config.

    Args:
      variant: A row of ROWS, "decoder", "tiny" or several.

    Returns:
      ConfigDict.
    """
    row, words = common.parse_variant(variant, ROWS)
    config = published.autoencoder("kl", **ROWS[row])
    config.loss.update(disc_start=50_001, disc_weight=0.5)
    return common.vary_autoencoder(config, words)
