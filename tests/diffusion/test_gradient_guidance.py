"""Guidance by gradients of a classifier or an image, on data known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.diffusion import gradient_guidance
from ldm_jax.diffusion.grids import make_points
from ldm_jax.diffusion.samplers import make_sampler
from ldm_jax.diffusion.schedule import make_schedule
from ldm_jax.diffusion.solve import normal, sample
from ldm_jax.models.layers import upsample_nearest

SCHEDULE = make_schedule()
# Data are N(MEAN, STD^2); what is observed of them is N(data, NOISE^2).
MEAN, STD, NOISE = 0.5, 0.8, 0.6
SHAPE = (16, 16, 2)


def exact(latents, point):
    """The denoiser of the data: (E[x0 | z_t], E[noise | z_t])."""
    variance = (point.alpha * STD) ** 2 + point.sigma**2
    noise = point.sigma * (latents - point.alpha * MEAN) / variance
    return (latents - point.sigma * noise) / point.alpha, noise


def log_prob_of(observed):
    """log p(observed | z_t), which holds for noisy latents what a classifier learns."""

    def log_prob(latents, timesteps):
        point = SCHEDULE.at(timesteps[:, None, None, None])
        variance = (point.alpha * STD) ** 2 + point.sigma**2
        spread = (STD * point.sigma) ** 2 / variance + NOISE**2
        error = (observed - exact(latents, point)[0]) ** 2 / spread
        return -0.5 * jnp.sum(error, axis=(1, 2, 3))

    return log_prob


def draw(predict, sampler="ddim", count=8):
    rngs = jax.random.split(jax.random.key(0), count)
    latents = normal(jax.random.split(jax.random.key(1), count), SHAPE)
    points = make_points(SCHEDULE, 100)
    run = jax.jit(
        lambda latents: sample(make_sampler(sampler), predict, latents, points, rngs)
    )
    return np.asarray(run(latents))


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
@pytest.mark.parametrize("observed", [-1.0, 2.0])
def test_classifier_guidance_draws_from_the_posterior(sampler, observed):
    guided = gradient_guidance.classifier_guidance(
        log_prob_of(observed), max_shift=None
    )
    found = draw(guided(exact), sampler)
    fraction = STD**2 / (STD**2 + NOISE**2)
    np.testing.assert_allclose(
        found.mean(), MEAN + fraction * (observed - MEAN), atol=0.05
    )
    np.testing.assert_allclose(found.std(), NOISE * fraction**0.5, atol=0.04)


def test_scale_is_a_power_of_the_probability():
    observed, ordinary = 2.0, draw(exact)
    distances = [np.abs(ordinary.mean() - observed)]
    for scale in (1.0, 5.0):
        guided = gradient_guidance.classifier_guidance(log_prob_of(observed), scale)
        distances.append(np.abs(draw(guided(exact)).mean() - observed))
    assert distances[0] > 1.5 * distances[1] > 3 * distances[2]


def test_samples_do_not_see_each_other():
    observed = jnp.arange(8.0)[:, None, None, None] / 4
    latents = normal(jax.random.split(jax.random.key(1), 8), SHAPE)

    @jax.jit
    def predict(latents, observed):
        guided = gradient_guidance.classifier_guidance(log_prob_of(observed))
        return guided(exact)(latents, SCHEDULE.at(jnp.int32(700)))

    together, alone = predict(latents, observed), predict(latents[3:4], observed[3:4])
    for many, one in zip(together, alone, strict=True):
        np.testing.assert_allclose(many[3:4], one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("timestep", [0, 500, 999])
@pytest.mark.parametrize("max_shift", [None, 0.5])
def test_a_shift_keeps_the_latents_and_its_bound(timestep, max_shift):
    point = SCHEDULE.at(jnp.int32(timestep))
    latents, gradient = np.random.default_rng(0).standard_normal((2, 4, 8, 8, 2))
    gradient *= 10.0 ** np.arange(-2, 2)[:, None, None, None]
    before = exact(latents, point)
    after = gradient_guidance.shift_prediction(before, gradient, point, max_shift)
    for x0, noise in (before, after):
        again = point.alpha * x0 + point.sigma * noise
        np.testing.assert_allclose(again, latents, rtol=1e-3, atol=1e-3)
    sizes = np.sqrt(np.mean(np.square(after[0] - before[0]), axis=(1, 2, 3)))
    full = point.sigma**2 / point.alpha * np.sqrt((gradient**2).mean(axis=(1, 2, 3)))
    bound = full if max_shift is None else np.minimum(full, max_shift)
    np.testing.assert_allclose(sizes, bound, rtol=1e-3, atol=1e-5)


def test_a_level_of_pure_noise_stays_finite():
    point = SCHEDULE.at(jnp.int32(999))._replace(alpha=0.0, sigma=1.0)
    zeros, gradient = jnp.zeros((2, 4, 4, 1)), jnp.full((2, 4, 4, 1), 3.0)
    x0, noise = gradient_guidance.shift_prediction((zeros, zeros), gradient, point, 1.0)
    np.testing.assert_allclose(x0, 1.0, rtol=1e-5)
    np.testing.assert_allclose(noise, 0.0, atol=1e-5)


def test_image_guidance_follows_the_gradient_through_the_denoiser():
    target, point = jnp.full((2, 4, 4, 2), 3.0), SCHEDULE.at(jnp.int32(400))
    latents = normal(jax.random.split(jax.random.key(1), 2), (8, 8, 2))
    distance = gradient_guidance.low_resolution_distance(target)
    guided = gradient_guidance.image_guidance(
        lambda x0: 2 * x0, distance, 0.1, max_shift=None
    )

    def log_density(latents):
        return -0.05 * distance(2 * exact(latents, point)[0]).sum()

    expected = exact(latents, point)[1] - point.sigma * jax.grad(log_density)(latents)
    found = guided(exact)(latents, point)[1]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(found - exact(latents, point)[1]).max() > 0.01


def test_image_guidance_brings_images_closer_to_their_targets():
    colours = np.random.default_rng(0).standard_normal((2, 3))

    def decode(latents):
        return jnp.tanh(upsample_nearest(latents @ colours))

    target = decode(draw(exact)[::-1])
    distance = gradient_guidance.low_resolution_distance(
        jax.image.resize(target, (8, 16, 16, 3), "cubic")
    )
    closer = draw(gradient_guidance.image_guidance(decode, distance, 10.0)(exact))
    unguided = draw(exact)
    assert (distance(decode(closer)) < 0.2 * distance(decode(unguided))).all()


def test_low_resolution_distance_is_zero_for_the_image_itself():
    images = jax.random.uniform(jax.random.key(0), (2, 16, 8, 3), minval=-1)
    small = jax.image.resize(images, (2, 4, 2, 3), "cubic")
    distance = gradient_guidance.low_resolution_distance(small)
    np.testing.assert_allclose(distance(images), 0, atol=1e-8)
    assert (distance(images + 0.5) > 1).all()
