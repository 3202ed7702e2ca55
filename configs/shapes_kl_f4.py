"""First stage KL-f4 on `shapes` at 64 px, scenes of up to four shapes.

    python -m ldm_jax.data.shapes --image_size=64 --num_train=20000
    python train.py --config=configs/shapes_kl_f4.py --workdir=runs/shapes_kl_f4
    python -m ldm_jax.evaluation --workdir=runs/shapes_kl_f4 --outdir=runs/evaluation

Made for two CPU cores and a quarter of an hour; see the README for what it reaches.
Variants: `:decoder` (fine-tunes the decoder alone, see `train.init_from`), `:tiny`
(four steps, for tests).
"""

from configs import common


def get_config(variant=""):
    """Returns the config; `variant` is "", "decoder", "tiny" or both."""
    _, words = common.parse_variant(variant)
    config = common.autoencoder(
        data=common.data(name="shapes/64", image_size=64, flip=True),
        first_stage=dict(
            kind="kl",
            channels=32,
            channel_mult=(1, 1, 2),
            num_res_blocks=1,
            attention_factors=(),
            mid_attention=False,
            norm_groups=8,
            z_channels=4,
            embed_dim=4,
            remat=False,
            dtype="float32",
        ),
        discriminator=dict(channels=16, num_layers=2, norm="batch", dtype="float32"),
        # Ramped up, so that the adversary's start costs little of the PSNR.
        loss=common.autoencoder_loss(
            disc_start=1600, disc_weight=0.1, disc_ramp_steps=300
        ),
        train=common.train(
            batch_size=8,
            num_steps=2200,
            learning_rate=2e-3,
            decay="cosine",
            warmup_steps=50,
            end_factor=0.05,
            optimizer=dict(kind="adam", b1=0.9, b2=0.99, eps=1e-8),
            ema_decay=0.99,
            log_every=100,
            eval_every=550,
            eval_batches=16,
            preview_every=550,
            checkpoint_every=550,
        ),
    )
    return common.vary_autoencoder(config, words)
