"""First stage KL-f4 of the paper (Table 8: f 4, KL, c 3), 55.3 M parameters.

    python train.py --config=configs/autoencoder_kl_f4.py --workdir=runs/kl_f4 \
        --config.data.data_dir=gs_or_local_path_of_prepared_imagenet2012

Published (trained on OpenImages, 176,991 steps, evaluated on ImageNet-val at 256 px):
R-FID 0.27, PSNR 27.53, SSIM 0.82.  Not reproduced here yet: the perceptual loss that
the published model was trained with is still to come, so expect blurrier textures.

Memory, not arithmetic, limits the batch: about 3.2 TFLOP per image and training step.
Variants: `:tiny` (a toy for a laptop).
"""

from configs import common


def get_config(variant=""):
    """Returns the config; `variant` is "" or "tiny"."""
    config = common.autoencoder(
        data=common.data(
            name="imagenet2012",
            eval_split="validation",
            image_size=256,
            crop="random",
            flip=True,
            workers=8,
        ),
        first_stage=dict(
            kind="kl",
            channels=128,
            channel_mult=(1, 2, 4),
            num_res_blocks=2,
            attention_factors=(),
            norm_groups=32,
            z_channels=3,
            embed_dim=3,
            remat=False,
            dtype="bfloat16",
        ),
        train=common.train(
            batch_size=96,
            num_steps=180_000,
            # The original's 4.5e-6 per image.
            learning_rate=4.5e-6 * 96,
            optimizer=dict(kind="adam", b1=0.5, b2=0.9, eps=1e-8),
            eval_every=10_000,
            eval_batches=50,
            preview_every=5_000,
            checkpoint_every=5_000,
        ),
    )
    if variant == "tiny":
        common.shrink_autoencoder(config)
    elif variant:
        raise ValueError(f'variant "{variant}" is unknown; the variant is "tiny"')
    return config
