"""Classifier of noisy latents for classifier guidance, on `shapes` at 32 px.

    python train.py --config=configs/shapes_classifier.py --workdir=runs/classifier \
        --config.first_stage.workdir=runs/autoencoder

It guides models that were trained with the same first stage and schedule, such as
configs/shapes_class.py, also without their labels.  Made for two CPU cores; see the
README for its results.  Variants: `:tiny` (four steps, for tests).
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
    config = common.classifier(
        data=common.data(name="shapes/32_single", image_size=32, flip=True),
        classifier=dict(
            channels=32,
            channel_mult=(1, 2),
            num_res_blocks=1,
            attention_factors=(2,),
            head_channels=32,
            resblock_updown=True,
            scale_shift_norm=True,
            norm_groups=16,
            pool="attention",
            dropout=0.1,
            dtype="float32",
        ),
        schedule=common.schedule(kind="cosine"),
        train=common.train(
            batch_size=64,
            num_steps=1500,
            learning_rate=1e-3,
            decay="cosine",
            warmup_steps=50,
            end_factor=0.02,
            optimizer=dict(kind="adamw", b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.05),
            grad_clip=1.0,
            ema_decay=0.99,
            eval_every=750,
            eval_batches=8,
            preview_images=0,
            checkpoint_every=500,
        ),
    )
    if words:
        common.shrink_classifier(config)
    return config
