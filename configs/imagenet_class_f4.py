"""Class-conditional LDM-4 on ImageNet 256 (Tables 3 and 15), 400.9 M parameters.

    python train.py --config=configs/imagenet_class_f4.py --workdir=runs/class_f4 \
        --config.first_stage.workdir=runs/vq_f4
    python sample.py --workdir=runs/class_f4 --outdir=samples --guidance_scale=1.5 \
        --num_steps=250 --num_samples=50000 --npz

Published (178 K steps of batch 1200, 271 V100-days; 250 DDIM steps): FID 10.56, IS
103.49; guided with scale 1.5 FID 3.60, IS 247.67.  The first stage is VQ-f4, the row f4
of `autoencoder_vq.py`.

Training costs 0.63 TFLOP per image, encoding included about 1.  Variants: `:tiny`.
"""

from configs import common


def get_config(variant=""):
    """Returns the config; `variant` is "" or "tiny"."""
    config = common.diffusion(
        data=common.data(
            name="imagenet2012",
            eval_split="validation",
            image_size=256,
            crop="center",
            flip=True,
            workers=8,
        ),
        conditions=dict(
            label=dict(
                kind="class_label",
                slot="context",
                num_classes=1000,
                features=512,
                # For classifier-free guidance; the original has no such dropout.
                dropout=0.1,
            ),
        ),
        unet=dict(
            channels=192,
            channel_mult=(1, 2, 3, 5),
            num_res_blocks=2,
            attention_factors=(8, 4, 2),
            num_heads=1,
            transformer_depth=1,
            norm_groups=32,
            remat=False,
            dtype="bfloat16",
        ),
        train=common.train(
            batch_size=1200,
            num_steps=178_000,
            learning_rate=1e-4,
            warmup_steps=1000,
            ema_decay=0.9999,
            eval_every=10_000,
            eval_batches=10,
            preview_every=5_000,
            checkpoint_every=5_000,
            keep_every=50_000,
        ),
        sample=common.sample(num_steps=250, guidance_scale=1.5),
    )
    if variant == "tiny":
        common.shrink_diffusion(config)
        config.conditions.label.features = 32
    elif variant:
        raise ValueError(f'variant "{variant}" is unknown; the variant is "tiny"')
    return config
