"""Second stage of the demo: class-conditional latent diffusion on `shapes` at 32 px.

    python train.py --config=configs/shapes_class.py --workdir=runs/class \
        --config.first_stage.workdir=runs/autoencoder
    python sample.py --workdir=runs/class --outdir=runs/samples --num_samples=32

Made for two CPU cores; see the README for its results.  Variants: `:tiny` (32 px, four
steps, for tests).
"""

from configs import common


def get_config(variant=""):
    """Makes the config.

    Args:
      variant: "" or "tiny".

    Returns:
      ConfigDict.
    """
    _, words = common.parse_variant(variant, words=("tiny",))
    config = common.diffusion(
        data=common.data(name="shapes/32_single", image_size=32),
        conditions=dict(
            # On the command line `--config.conditions.label.kind=none` turns it off.
            label=dict(
                kind="class_label",
                slot="vector",
                num_classes=common.placeholder(int),
                features=common.placeholder(int),
                dropout=0.1,
            ),
        ),
        backbone=dict(
            channels=64,
            channel_mult=(1, 2),
            num_res_blocks=1,
            attention_factors=(1, 2),
            head_channels=32,
            transformer_depth=0,
            scale_shift_norm=True,
            norm_groups=16,
            remat=False,
            dtype="float32",
        ),
        schedule=common.schedule(kind="cosine", prediction_type="v"),
        train=common.train(
            batch_size=32,
            num_steps=2100,
            learning_rate=2e-3,
            decay="cosine",
            warmup_steps=50,
            end_factor=0.02,
            optimizer=dict(kind="adamw", b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.01),
            grad_clip=1.0,
            ema_decay=0.995,
            log_every=100,
            eval_every=1050,
            eval_batches=4,
            preview_every=1050,
            checkpoint_every=525,
        ),
        sample=common.sample(num_steps=30, guidance_scale=4.0),
    )
    if words:
        common.shrink_diffusion(config)
    return config
