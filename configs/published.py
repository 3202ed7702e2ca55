"""Configs of the two stages shared by the paper's experiments, at 256 px and up."""

from configs import common


def autoencoder(
    kind,
    *,
    channel_mult,
    z_channels,
    batch_size,
    num_steps,
    attention_factors=(),
    mid_attention=True,
    **fields,
):
    """Makes the config of a first stage of the paper on ImageNet 256.

    Args:
      kind: "kl" or "vq".
      channel_mult: Width of each level, as a multiple of 128.
      z_channels: Channels of the latents.
      batch_size: Global batch size.
      num_steps: Length of the training.
      attention_factors: Downsampling factors at which there is attention.
      mid_attention: Whether there is attention in the middle block.
      **fields: Further fields of the autoencoder.

    Returns:
      A ConfigDict.
    """
    return common.autoencoder(
        data=common.data(
            name="imagenet2012", image_size=256, crop="random", flip=True, workers=8
        ),
        first_stage=dict(
            kind=kind,
            channels=128,
            channel_mult=channel_mult,
            num_res_blocks=2,
            attention_factors=attention_factors,
            mid_attention=mid_attention,
            norm_groups=32,
            z_channels=z_channels,
            embed_dim=z_channels,
            remat=False,
            dtype="bfloat16",
            **fields,
        ),
        discriminator=dict(channels=64, num_layers=3, norm="batch", dtype="bfloat16"),
        # Needs `loss.lpips_weights`; 0 trains without them, with blurrier textures.
        loss=common.autoencoder_loss(perceptual_weight=1.0),
        train=common.train(
            batch_size=batch_size,
            num_steps=num_steps,
            # CompVis's 4.5e-6 per image.
            learning_rate=4.5e-6 * batch_size,
            optimizer=dict(kind="adam", b1=0.5, b2=0.9, eps=1e-8),
            eval_every=10_000,
            eval_batches=50,
            preview_every=5_000,
            checkpoint_every=5_000,
        ),
    )


def diffusion(variant, rows):
    """Makes the config of a second stage of the paper.

    All rows share two choices that the paper leaves open or makes differently: the
    learning rate is warmed up over 1000 steps, and the scaling factor of the latents is
    measured on some batches, where CompVis uses 1 for VQ and 0.18215 for LAION.

    Args:
      variant: A row of `rows`, "tiny" or both.
      rows: Name -> dict with `data`, `backbone` and `train`, which must set batch
        size, steps and learning rate; optionally `inputs` and `conditions`,
        `schedule`, `loss` and `sample`. Each overrides the common values.

    Returns:
      A ConfigDict.

    Raises:
      ValueError: On an unknown variant.
    """
    row, words = common.parse_variant(variant, rows, words=("tiny",))
    row = rows[row]
    config = common.diffusion(
        data=common.data(image_size=256, workers=8, inputs=row.get("inputs", {}))
        | row["data"],
        conditions=row.get("conditions", {}),
        backbone=dict(num_res_blocks=2, norm_groups=32, remat=False, dtype="bfloat16")
        | row["backbone"],
        schedule=common.schedule(**row.get("schedule", {})),
        train=common.train(
            warmup_steps=1000,
            ema_decay=0.9999,
            eval_every=10_000,
            eval_batches=10,
            preview_every=5_000,
            checkpoint_every=5_000,
            keep_every=50_000,
        )
        | row["train"],
        sample=common.sample(**row.get("sample", {})),
    )
    config.loss.update(row.get("loss", {}))
    if words:
        common.shrink_diffusion(config)
    return config
