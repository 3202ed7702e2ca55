"""From the loss to samples, for the choices that a model may be trained with."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ldm_jax import generate, latent_diffusion
from ldm_jax.conditioners import make_conditioner
from ldm_jax.diffusion.latent_statistics import LatentStatistics
from ldm_jax.diffusion.objective import Objective
from ldm_jax.diffusion.sample_options import from_flat
from ldm_jax.diffusion.schedule import make_schedule
from ldm_jax.models.autoencoder import IdentityAutoencoder

LEVELS, MEAN, STD = 20, 0.6, 0.3
FROZEN = {"first_stage": {}, "statistics": LatentStatistics().arrays()}


class Affine(nn.Module):
    """An affine map per timestep: all that Gaussian data needs."""

    @nn.compact
    def __call__(self, latents, timesteps, *slots, train=False):
        gain, offset = self.param("map", nn.initializers.zeros, (2, LEVELS))
        gain, offset = (v[timesteps, None, None, None] for v in (gain, offset))
        return gain * latents + offset


@pytest.mark.parametrize(
    "schedule, loss, sample",
    [
        (
            {"kind": "rectified_flow"},
            {"prediction_type": "velocity", "timestep_sampling": "logit_normal"},
            {"sampler": "flow_euler", "spacing": "trailing"},
        ),
        (
            {"beta_end": 0.6, "zero_terminal_snr": True},
            {"prediction_type": "v", "min_snr_gamma": 5.0},
            {"sampler": "dpmpp_2m", "spacing": "trailing"},
        ),
        (
            {"beta_end": 0.6},
            {"prediction_type": "noise", "min_snr_gamma": 5.0, "offset_noise": 0.1},
            {"sampler": "unipc", "spacing": "linspace_open"},
        ),
    ],
    ids=["rectified_flow", "zero_terminal_snr", "noise"],
)
def test_what_is_trained_is_sampled(schedule, loss, sample):
    model = latent_diffusion.LatentDiffusion(
        Affine(),
        make_conditioner(None),
        make_schedule(num_train_timesteps=LEVELS, **schedule),
        IdentityAutoencoder(image_channels=1),
        Objective(**loss),
    )
    optimizer = optax.adam(optax.cosine_decay_schedule(0.2, 300))

    def step(carry, rng):
        params, state = carry
        data_rng, loss_rng = jax.random.split(rng)
        images = MEAN + STD * jax.random.normal(data_rng, (512, 1, 1, 1))
        gradients, metrics = jax.grad(latent_diffusion.loss, argnums=1, has_aux=True)(
            model, params, FROZEN, {"image": images}, loss_rng
        )
        updates, state = optimizer.update(gradients, state)
        return (optax.apply_updates(params, updates), state), metrics["loss"]

    @jax.jit
    def train(rng):
        params = latent_diffusion.init(model, rng, {"image": jnp.zeros((1, 1, 1, 1))})
        carry = params, optimizer.init(params)
        (params, _), losses = jax.lax.scan(step, carry, jax.random.split(rng, 300))
        return params, losses

    params, losses = train(jax.random.key(0))
    assert losses[-30:].mean() < 0.6 * losses[:3].mean()
    images = jax.jit(
        lambda params, rngs: generate.sample_images(
            model,
            params,
            FROZEN,
            {},
            rngs,
            from_flat({"num_steps": LEVELS} | sample, (1, 1)),
        )
    )(params, jax.random.split(jax.random.key(1), 2048))
    np.testing.assert_allclose(images.mean(), MEAN, atol=0.05)
    np.testing.assert_allclose(images.std(), STD, atol=0.05)
