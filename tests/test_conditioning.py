"""Many conditions at once, on the same and on different slots, from data to U-Net."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax import latent_diffusion
from ldm_jax.conditioners import make_conditioner
from ldm_jax.diffusion.latent_statistics import LatentStatistics
from ldm_jax.diffusion.schedule import make_schedule
from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.models.autoencoder import KLAutoencoder
from ldm_jax.models.unet import UNet
from tests.common import random_variables, random_weights

BATCH, SIZE = 2, 8
CONDITIONS = dict(
    caption=dict(
        kind="text",
        vocab_size=9,
        features=8,
        num_layers=1,
        max_length=3,
        num_heads=2,
        head_channels=4,
        null_ids=(0,),
    ),
    style=dict(
        kind="clip_image",
        image_size=6,
        patch_size=3,
        width=8,
        num_layers=1,
        num_heads=2,
        head_channels=4,
        embed_dim=6,
        pooled=False,
        features=8,
    ),
    label=dict(kind="class_label", num_classes=3, features=32, slot="vector"),
    embedding=dict(kind="raw", slot="vector", features=32),
    number=dict(kind="class_label", num_classes=3, features=2, slot="concat"),
    depth=dict(kind="spatial", num_stages=1, features=1),
    example=dict(kind="encoded"),
    masked_image=dict(kind="masked_image"),
)
MODEL = LatentDiffusion(
    UNet(
        out_channels=2,
        channels=8,
        channel_mult=(1,),
        num_res_blocks=1,
        num_heads=2,
        transformer_depth=1,
        adaln_zero=True,
        norm_groups=2,
    ),
    make_conditioner(CONDITIONS),
    make_schedule(),
    KLAutoencoder(
        channels=8,
        channel_mult=(1, 1),
        num_res_blocks=1,
        z_channels=2,
        embed_dim=2,
        norm_groups=2,
        mid_attention=False,
    ),
)


def draw_batch(seed):
    random = np.random.default_rng(seed)
    masked = random.uniform(-1, 1, (BATCH, SIZE, SIZE, 4)).astype(np.float32)
    masked[..., 3] = masked[..., 3] > 0
    images = random.integers(0, 256, (3, BATCH, SIZE, SIZE, 3), np.uint8)
    return {
        "image": images[0],
        "caption": random.integers(1, 9, (BATCH, 3)),
        "style": images[1],
        "label": np.full(BATCH, seed, np.int32),
        "embedding": random.standard_normal((BATCH, 5), np.float32),
        "number": np.full(BATCH, seed, np.int32),
        "depth": random.uniform(-1, 1, (BATCH, SIZE, SIZE, 1)).astype(np.float32),
        "example": images[2],
        "masked_image": masked,
    }


@pytest.fixture(scope="module")
def weights():
    """Random parameters, no zeros among them, and a random first stage."""
    images = jnp.zeros((1, SIZE, SIZE, 3))
    params = random_weights(latent_diffusion.init(MODEL, None, draw_batch(0)))
    return params, {
        "first_stage": random_variables(MODEL.first_stage, images)["params"],
        "statistics": LatentStatistics(scale=0.5).arrays(),
    }


def test_each_condition_steers_beside_the_others(weights):
    params, frozen = weights
    latents = np.random.default_rng(3).standard_normal((BATCH, 4, 4, 2), np.float32)

    @jax.jit
    def predict(batch):
        inputs = latent_diffusion.encode_inputs(MODEL, frozen, batch)
        told = latent_diffusion.condition(MODEL, params, inputs)
        timesteps = jnp.full(BATCH, 500)
        return MODEL.backbone.apply(
            {"params": params["backbone"]}, latents, timesteps, *told
        )

    batch, other = draw_batch(1), draw_batch(2)
    MODEL.conditioner.check(batch)
    base = predict(batch)
    for key in CONDITIONS:
        changed = predict(batch | {key: other[key]})
        assert np.abs(changed - base).max() > 1e-5 * np.abs(base).max(), key
    # What is no condition does not.
    np.testing.assert_array_equal(predict(batch | {"image": other["image"]}), base)


def test_the_loss_trains_each_conditioner(weights):
    params, frozen = weights

    @jax.jit
    def gradients(params):
        def loss(params):
            rng = jax.random.key(0)
            return latent_diffusion.loss(MODEL, params, frozen, draw_batch(1), rng)[0]

        return jax.grad(loss)(params)

    gradient = gradients(params)["conditioner"]
    assert gradient.keys() == CONDITIONS.keys() - {"example", "masked_image"}
    for key, tree in gradient.items():
        assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(tree)), key
