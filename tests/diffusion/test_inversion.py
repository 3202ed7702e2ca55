"""DDIM inversion: to noise and back."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.diffusion.grids import make_points
from ldm_jax.diffusion.samplers import make_sampler
from ldm_jax.diffusion.schedule import (
    SchedulePoint,
    make_schedule,
    predict_noise,
    predict_x0,
)
from ldm_jax.diffusion.solve import invert, sample

RNGS = jax.random.split(jax.random.key(0), 4)
LATENTS = 0.5 * jax.random.normal(jax.random.key(1), (4, 3, 3, 2)) + 0.3
MODELS = {
    "noise": make_schedule(),
    "x0": make_schedule(),
    "v": make_schedule(),
    "velocity": make_schedule("rectified_flow"),
}


def denoiser(prediction_type, latents, point):
    """A smooth network, exact for data N(0, 0.6^2) up to a bend."""
    variance = (0.6 * point.alpha) ** 2 + point.sigma**2
    x0 = 0.36 * point.alpha * latents / variance + 0.1 * jnp.sin(latents + 0.5)
    output = {
        "noise": (latents - point.alpha * x0) / jnp.maximum(point.sigma, 1e-3),
        "x0": x0,
        "v": (point.alpha * latents - x0) / jnp.maximum(point.sigma, 1e-3),
        "velocity": (latents - (point.alpha + point.sigma) * x0)
        / jnp.maximum(point.sigma, 1e-3),
    }[prediction_type]
    return (
        predict_x0(output, latents, point, prediction_type),
        predict_noise(output, latents, point, prediction_type),
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def there_and_back(prediction_type, num_steps, iterations, latents):
    schedule = MODELS[prediction_type]
    points = make_points(schedule, num_steps, final_level="clean")
    predict = functools.partial(denoiser, prediction_type)
    noise = invert(predict, latents, points, iterations=iterations)
    return noise, sample(make_sampler("ddim"), predict, noise, points, RNGS)


@pytest.mark.parametrize("prediction_type", MODELS)
def test_leads_to_noise_and_back(prediction_type):
    noise, latents = there_and_back(prediction_type, 50, 8, LATENTS)
    assert 0.6 < noise.std() < 1.6
    np.testing.assert_allclose(latents, LATENTS, atol=2e-3)


def test_more_steps_and_more_iterations_come_closer():
    errors = [
        float(jnp.abs(there_and_back("noise", *counts, LATENTS)[1] - LATENTS).mean())
        for counts in ((10, 1), (100, 1), (10, 8))
    ]
    assert errors[1] < 0.5 * errors[0] and errors[2] < 0.05 * errors[0]


def test_two_parts_are_the_whole_way():
    points = make_points(MODELS["noise"], 6)
    predict = functools.partial(denoiser, "noise")
    noise = invert(predict, LATENTS, points)
    partly = invert(predict, LATENTS, points, start=4)
    rest = SchedulePoint(*(values[:5] for values in points))
    assert np.abs(partly - noise).max() > 0.1
    np.testing.assert_allclose(invert(predict, partly, rest), noise, rtol=1e-5)


def test_reaches_pure_noise_without_dividing_by_nothing():
    for schedule in (
        make_schedule(zero_terminal_snr=True),
        make_schedule("rectified_flow"),
    ):
        points = make_points(schedule, 10, "trailing")
        predict = functools.partial(denoiser, "velocity")
        noise = invert(predict, LATENTS, points, iterations=20)
        back = sample(make_sampler("ddim"), predict, noise, points, RNGS)
        np.testing.assert_allclose(back, LATENTS, atol=2e-3)


@pytest.mark.parametrize(
    "options, message",
    [({"start": 6}, "start must be in"), ({"iterations": 0}, "at least 1")],
)
def test_wrong_options_are_refused(options, message):
    points = make_points(MODELS["noise"], 6)
    with pytest.raises(ValueError, match=message):
        invert(functools.partial(denoiser, "noise"), LATENTS, points, **options)
