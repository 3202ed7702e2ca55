"""Classifier-free guidance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ldm_jax.conditioners import Conditioning
from ldm_jax.diffusion import guidance
from ldm_jax.diffusion.schedule import (
    PREDICTION_TYPES,
    make_schedule,
    predict_noise,
    predict_x0,
)

POINT = make_schedule().at(jnp.int32(500))


def denoiser(shift, prediction_type="noise"):
    def predict(latents, point):
        output = jnp.tanh(latents * point.timestep / 700 + shift)
        return (
            predict_x0(output, latents, point, prediction_type),
            predict_noise(output, latents, point, prediction_type),
        )

    return predict


@pytest.fixture
def arrays():
    latents, null, given = jax.random.normal(jax.random.key(0), (3, 8, 4, 4, 2))
    return latents, null[:, :1, :1], given[:, :1, :1]


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_extrapolates_from_null_to_given(arrays, scale):
    latents, null, given = arrays
    guided = guidance.guide(denoiser(guidance.pair(null, given)), scale)
    expected = jax.tree.map(
        lambda a, b: a + scale * (b - a),
        denoiser(null)(latents, POINT),
        denoiser(given)(latents, POINT),
    )
    for ours, theirs in zip(guided(latents, POINT), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_guiding_x0_and_noise_is_guiding_the_output(arrays, prediction_type):
    latents, null, given = arrays
    told = guidance.pair(null, given)
    x0, noise = guidance.guide(denoiser(told, prediction_type), 4.0)(latents, POINT)
    outputs = [jnp.tanh(latents * 500 / 700 + shift) for shift in (null, given)]
    output = outputs[0] + 4.0 * (outputs[1] - outputs[0])
    expected = predict_x0(output, latents, POINT, prediction_type)
    np.testing.assert_allclose(x0, expected, atol=1e-4)
    expected = predict_noise(output, latents, POINT, prediction_type)
    np.testing.assert_allclose(noise, expected, atol=1e-4)


def test_scale_may_be_traced(arrays):
    latents, null, given = arrays
    predict = denoiser(guidance.pair(null, given))
    guided = jax.jit(lambda scale: guidance.guide(predict, scale)(latents, POINT)[1])
    expected = denoiser(given)(latents, POINT)[1]
    np.testing.assert_allclose(guided(1.0), expected, atol=2e-5)
    assert np.abs(guided(2.0) - expected).max() > 0.1


@pytest.mark.parametrize(
    "scale, off", [(1, True), (1.0, True), (1.5, False), (0, False)]
)
def test_only_the_number_one_is_off(scale, off):
    assert guidance.is_off(scale) == off
    assert not guidance.is_off(jnp.float32(scale))


def test_empty_slots_stay_empty():
    filled = Conditioning(context=jnp.zeros((2, 1, 3)), vector=jnp.ones((2, 5)))
    paired = guidance.pair(filled, filled)
    assert paired.concat is None
    assert paired.context.shape == (4, 1, 3) and paired.vector.shape == (4, 5)


def test_sharded_batch_stays_on_its_devices(arrays):
    mesh = Mesh(np.array(jax.devices()), ("data",))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    latents, null, given = jax.device_put(arrays, sharding)

    @jax.jit
    def guided(latents, null, given):
        predict = denoiser(guidance.pair(null, given))
        return guidance.guide(predict, 3.0)(latents, POINT)

    program = guided.lower(latents, null, given).compile().as_text()
    assert len(jax.devices()) > 1
    for collective in ("all-to-all", "all-gather", "collective-permute", "all-reduce"):
        assert collective not in program
