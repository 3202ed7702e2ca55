"""The denoising loss and the weights of its ELBO term."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.diffusion.losses import LOSS_TYPES, denoising_loss, elbo_weights
from ldm_jax.diffusion.schedule import add_noise, make_schedule, target_for
from tests.common import assert_close, load_case, nhwc

SCHEDULE = make_schedule()


@pytest.mark.parametrize("loss_type", ["l1", "l2"])
@pytest.mark.parametrize("prediction_type", ["noise", "x0"])
def test_matches_the_original(prediction_type, loss_type):
    case = load_case("diffusion_losses")
    latents, cond, noise = (nhwc(case.arrays[key]) for key in ("x0", "cond", "noise"))
    timesteps = jnp.array(case.meta["config"]["timesteps"])
    point = SCHEDULE.at(timesteps)
    scale = (0.5 + timesteps / 2000)[:, None, None, None]
    output = jnp.tanh(add_noise(latents, noise, point) * scale + cond)
    loss, metrics = denoising_loss(
        output,
        target_for(prediction_type, latents, noise, point),
        elbo_weights(SCHEDULE, prediction_type)[timesteps],
        loss_type=loss_type,
        simple_weight=case.meta["config"]["l_simple_weight"],
        elbo_weight=case.meta["config"]["original_elbo_weight"],
        logvar=case.meta["config"]["logvar"],
    )
    prefix = f"{'eps' if prediction_type == 'noise' else 'x0'}_{loss_type}_"
    assert_close(loss, case.arrays[prefix + "loss"], 2e-4)
    for name in ("loss_simple", "loss_vlb", "loss"):
        assert_close(metrics[name], case.arrays[f"{prefix}_{name}"], 2e-4)


@pytest.mark.parametrize("v_posterior", [0.0, 0.3])
@pytest.mark.parametrize("prediction_type, name", [("noise", "eps"), ("x0", "x0")])
def test_elbo_weights_match_the_original(prediction_type, name, v_posterior):
    expected = load_case("schedules").arrays[f"lvlb_weights_{name}_v{v_posterior}"]
    assert_close(elbo_weights(SCHEDULE, prediction_type, v_posterior), expected)


@pytest.mark.parametrize("prediction_type", ["v", "velocity"])
def test_elbo_weights_of_other_types_are_one(prediction_type):
    assert np.all(elbo_weights(SCHEDULE, prediction_type) == 1)


@pytest.mark.parametrize("loss_type, plateau", [("l1", (2 / np.pi) ** 0.5), ("l2", 1)])
def test_network_that_says_zero_sits_on_the_plateau(loss_type, plateau):
    noise = jax.random.normal(jax.random.key(0), (8, 32, 32, 4))
    loss, _ = denoising_loss(jnp.zeros_like(noise), noise, 1.0, loss_type=loss_type)
    np.testing.assert_allclose(loss, plateau, rtol=0.02)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_examples_of_weight_zero_do_not_count(loss_type):
    output, target = jax.random.normal(jax.random.key(1), (2, 4, 2, 2, 3))
    vlb, logvar = jnp.arange(1.0, 5.0), jnp.linspace(-1, 1, 4)
    options = {"loss_type": loss_type, "elbo_weight": 0.3}
    _, part = denoising_loss(
        output[:3], target[:3], vlb[:3], logvar=logvar[:3], **options
    )
    weights = jnp.array([1, 1, 1, 0])
    _, whole = denoising_loss(
        output, target, vlb, logvar=logvar, weights=weights, **options
    )
    for name, value in part.items():
        np.testing.assert_allclose(whole[name], value, rtol=1e-6)


def test_learned_logvar_is_best_at_the_log_of_the_error():
    output, target = jax.random.normal(jax.random.key(2), (2, 1, 8, 8, 4))
    best = jnp.log(jnp.mean((output - target) ** 2))

    def loss(logvar):
        return denoising_loss(output, target, 1.0, logvar=logvar)[0]

    np.testing.assert_allclose(jax.grad(loss)(best), 0, atol=1e-6)
    assert jax.grad(loss)(best + 0.1) > 0 > jax.grad(loss)(best - 0.1)


def test_loss_is_float32_for_any_network():
    output = jnp.ones((2, 4, 4, 1), jnp.bfloat16)
    loss, metrics = denoising_loss(output, jnp.zeros((2, 4, 4, 1)), 1.0)
    assert loss.dtype == jnp.float32
    assert all(value.dtype == jnp.float32 for value in metrics.values())
