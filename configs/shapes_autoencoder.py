"""First stage of the demo: KL-f4 on the embedded data set `shapes` at 32 px.

    python -m ldm_jax.data.shapes --image_size=32 --max_shapes=1 --num_train=20000
    python train.py --config=configs/shapes_autoencoder.py --workdir=runs/autoencoder

Made for two CPU cores, on which it takes about two minutes; see the README for its
results.  Variants: `:decoder` (fine-tunes the decoder alone, see `train.init_from`),
`:tiny` (four steps, for tests).
"""

from configs import common


def get_config(variant=""):
    """Makes the config.

    Args:
      variant: "", "decoder", "tiny" or both.

    Returns:
      ConfigDict.
    """
    _, words = common.parse_variant(variant)
    config = common.autoencoder(
        data=common.data(name="shapes/32_single", image_size=32, flip=True),
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
        loss=common.autoencoder_loss(disc_start=1050, disc_weight=0.1),
        train=common.train(
            batch_size=8,
            num_steps=1300,
            learning_rate=2e-3,
            decay="cosine",
            warmup_steps=50,
            end_factor=0.05,
            optimizer=dict(kind="adam", b1=0.9, b2=0.99, eps=1e-8),
            ema_decay=0.99,
            log_every=100,
            eval_every=650,
            eval_batches=16,
            preview_every=650,
            checkpoint_every=500,
        ),
    )
    return common.vary_autoencoder(config, words)
