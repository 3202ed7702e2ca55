"""The objective: the denoising loss, the weights of noise levels, the draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.diffusion.objective import (
    LOSS_TYPES,
    TIMESTEP_SAMPLINGS,
    LevelWeights,
    Objective,
    elbo_weights,
    min_snr_weights,
)
from ldm_jax.diffusion.schedule import (
    PREDICTION_TYPES,
    add_noise,
    make_schedule,
    predict_x0,
)
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
    objective = Objective(
        prediction_type,
        loss_type,
        simple_weight=case.meta["config"]["l_simple_weight"],
        elbo_weight=case.meta["config"]["original_elbo_weight"],
        logvar_init=case.meta["config"]["logvar"],
    )
    loss, metrics = objective.loss(
        output,
        objective.target(latents, noise, point),
        objective.levels(timesteps, SCHEDULE),
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


def test_elbo_weights_of_a_new_type_follow_from_what_it_says_of_x0(monkeypatch):
    noise = PREDICTION_TYPES["noise"]
    half = noise._replace(
        target=lambda x0, noise, alpha, sigma: noise / 2,
        x0=lambda out, *point: noise.x0(2 * out, *point),
        noise=lambda out, *point: 2 * out,
    )
    monkeypatch.setitem(PREDICTION_TYPES, "half", half)
    expected = elbo_weights(SCHEDULE, "noise", 0.3)
    # Half the output makes a quarter of the error.
    assert_close(elbo_weights(SCHEDULE, "half", 0.3), 4 * expected)


@pytest.mark.parametrize("prediction_type", ["v", "velocity"])
def test_elbo_weights_of_other_types_are_one(prediction_type):
    assert np.all(elbo_weights(SCHEDULE, prediction_type) == 1)


@pytest.mark.parametrize("loss_type, plateau", [("l1", (2 / np.pi) ** 0.5), ("l2", 1)])
def test_network_that_outputs_zeros_sits_on_the_plateau(loss_type, plateau):
    noise = jax.random.normal(jax.random.key(0), (8, 32, 32, 4))
    objective = Objective(loss_type=loss_type)
    loss, _ = objective.loss(jnp.zeros_like(noise), noise, LevelWeights())
    np.testing.assert_allclose(loss, plateau, rtol=0.02)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_examples_of_weight_zero_do_not_count(loss_type):
    output, target = jax.random.normal(jax.random.key(1), (2, 4, 2, 2, 3))
    vlb, logvar = jnp.arange(1.0, 5.0), jnp.linspace(-1, 1, 4)
    objective = Objective(loss_type=loss_type, elbo_weight=0.3)
    levels = LevelWeights(elbo=vlb[:3], logvar=logvar[:3])
    _, part = objective.loss(output[:3], target[:3], levels)
    weights = jnp.array([1, 1, 1, 0])
    levels = LevelWeights(elbo=vlb, logvar=logvar)
    _, whole = objective.loss(output, target, levels, weights)
    for name, value in part.items():
        np.testing.assert_allclose(whole[name], value, rtol=1e-6)


def test_learned_logvar_is_best_at_the_log_of_the_error():
    output, target = jax.random.normal(jax.random.key(2), (2, 1, 8, 8, 4))
    best = jnp.log(jnp.mean((output - target) ** 2))

    def loss(logvar):
        return Objective().loss(output, target, LevelWeights(logvar=logvar))[0]

    np.testing.assert_allclose(jax.grad(loss)(best), 0, atol=1e-6)
    assert jax.grad(loss)(best + 0.1) > 0 > jax.grad(loss)(best - 0.1)


def test_loss_is_float32_for_any_network():
    output = jnp.ones((2, 4, 4, 1), jnp.bfloat16)
    loss, metrics = Objective().loss(output, jnp.zeros((2, 4, 4, 1)), LevelWeights())
    assert loss.dtype == jnp.float32
    assert all(value.dtype == jnp.float32 for value in metrics.values())


def test_min_snr_weights_of_the_paper():
    # Hang et al. 2023, Sec. 3.4: for x0, noise and v.
    snr = (SCHEDULE.alpha / SCHEDULE.sigma) ** 2
    clipped = np.minimum(snr, 5.0)
    for prediction_type, expected in {
        "x0": clipped,
        "noise": clipped / snr,
        "v": clipped / (snr + 1),
    }.items():
        weights = min_snr_weights(SCHEDULE, prediction_type, 5.0)
        assert weights.dtype == np.float32 and weights.shape == (1000,)
        np.testing.assert_allclose(weights, expected, rtol=1e-5)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_min_snr_weighs_the_same_error_in_x0_the_same(prediction_type):
    kind = "rectified_flow" if prediction_type == "velocity" else "scaled_linear"
    schedule = make_schedule(kind)
    timesteps = jnp.array([5, 300, 600, 950])
    point = schedule.at(timesteps)
    latents, output = jax.random.normal(jax.random.key(3), (2, 4, 3, 3, 1))
    error = 1e-2
    x0, moved = (
        predict_x0(out, latents, point, prediction_type)
        for out in (output, output + error)
    )
    weights = min_snr_weights(schedule, prediction_type, 5.0)[timesteps]
    snr = (schedule.alpha / schedule.sigma)[timesteps] ** 2
    expected = np.minimum(snr, 5.0) * ((moved - x0) ** 2).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(weights * error**2, expected, rtol=2e-3)


def test_min_snr_stays_finite_on_levels_without_signal():
    schedule = make_schedule(zero_terminal_snr=True)
    weights = min_snr_weights(schedule, "v", 5.0)
    assert np.all(np.isfinite(weights)) and weights[-1] == 0 < weights[-2]


def test_level_weights_act_on_the_simple_term_alone():
    output, target = jax.random.normal(jax.random.key(4), (2, 3, 4, 4, 2))
    vlb, logvar, level = jnp.array([[1.0, 2.0, 3.0], [0.1, 0.2, -0.3], [0.5, 2, 0]])
    levels = LevelWeights(simple=level, elbo=vlb, logvar=logvar)
    loss, metrics = Objective(elbo_weight=0.3).loss(output, target, levels)
    error = np.mean((output - target) ** 2, axis=(1, 2, 3))
    simple = np.mean(level * (error / np.exp(logvar) + logvar))
    np.testing.assert_allclose(loss, simple + 0.3 * np.mean(vlb * error), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss_simple"], error.mean(), rtol=1e-5)


@pytest.mark.parametrize("kind", TIMESTEP_SAMPLINGS)
def test_drawn_timesteps_stay_in_the_table(kind):
    objective, ten = Objective(timestep_sampling=kind), make_schedule("linear", 10)
    drawn = objective.draw_timesteps(jax.random.key(5), 4096, ten)
    assert drawn.dtype == jnp.int32 and drawn.shape == (4096,)
    assert set(np.unique(drawn)) == set(range(10))
    same = objective.draw_timesteps(jax.random.key(5), 4096, ten)
    np.testing.assert_array_equal(drawn, same)


@pytest.mark.parametrize("mean, std", [(0.0, 1.0), (1.0, 0.5)])
def test_logit_normal_timesteps_are_normal_in_the_logit(mean, std):
    objective = Objective(
        timestep_sampling="logit_normal", logit_mean=mean, logit_std=std
    )
    drawn = objective.draw_timesteps(jax.random.key(6), 20_000, SCHEDULE)
    time = (np.asarray(drawn) + 0.5) / 1000
    logit = np.log(time / (1 - time))
    np.testing.assert_allclose(logit.mean(), mean, atol=0.03)
    np.testing.assert_allclose(logit.std(), std, atol=0.03)


def test_logit_normal_never_leaves_the_table():
    objective = Objective(timestep_sampling="logit_normal", logit_mean=50.0)
    drawn = objective.draw_timesteps(jax.random.key(7), 8, SCHEDULE)
    np.testing.assert_array_equal(drawn, np.full(8, 999))


def test_offset_noise_is_shared_by_the_pixels_of_a_channel():
    shape, rng = (512, 8, 8, 2), jax.random.key(8)
    plain = Objective().draw_noise(rng, shape)
    offset = Objective(offset_noise=0.5).draw_noise(rng, shape)
    np.testing.assert_array_equal(plain, jax.random.normal(rng, shape))
    shift = np.asarray(offset - plain)
    np.testing.assert_allclose(shift.std(axis=(1, 2)), 0, atol=1e-5)
    means = shift[:, 0, 0]
    np.testing.assert_allclose(means.std(axis=0), 0.5, atol=0.05)
    # Nothing of it is known from the noise, from another channel or another example.
    others = [plain.mean(axis=(1, 2))[:, 0], means[:, 1], np.roll(means[:, 0], 1)]
    correlations = np.corrcoef([means[:, 0], *others])[0, 1:]
    assert np.abs(correlations).max() < 0.15


def test_levels_are_looked_up():
    timesteps = jnp.array([0, 300, 999])
    plain = Objective(logvar_init=0.2).levels(timesteps, SCHEDULE)
    assert plain.simple == 1.0 and plain.logvar == 0.2
    np.testing.assert_array_equal(
        plain.elbo, elbo_weights(SCHEDULE, "noise")[timesteps]
    )
    objective = Objective("v", min_snr_gamma=5.0)
    found = objective.levels(timesteps, SCHEDULE, jnp.arange(1000.0))
    expected = min_snr_weights(SCHEDULE, "v", 5.0)[timesteps]
    np.testing.assert_array_equal(found.simple, expected)
    np.testing.assert_array_equal(found.logvar, timesteps)


def test_log_variances_are_parameters_where_they_are_learned():
    assert Objective().init(SCHEDULE) == {}
    made = Objective(learn_logvar=True, logvar_init=0.5).init(SCHEDULE)
    np.testing.assert_array_equal(made["logvar"], np.full(1000, 0.5, np.float32))
