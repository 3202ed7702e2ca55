"""Schedules: tables, posterior, and the four prediction types."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.diffusion.posterior import (
    posterior,
    posterior_variance,
    previous_levels,
)
from ldm_jax.diffusion.schedule import (
    BETAS,
    PREDICTION_TYPES,
    WITHOUT_BETAS,
    add_noise,
    check_prediction,
    make_schedule,
    predict_noise,
    predict_x0,
    target_for,
)
from tests.common import assert_close, load_case


@pytest.fixture(scope="module")
def reference():
    return load_case("schedules").arrays


@pytest.mark.parametrize("kind", [*BETAS, *WITHOUT_BETAS])
@pytest.mark.parametrize("num_train_timesteps", [2, 37, 1000])
def test_noise_grows_with_the_timestep(kind, num_train_timesteps):
    schedule = make_schedule(kind, num_train_timesteps)
    table = schedule.table
    assert table.alpha.dtype == np.float64
    assert np.all(np.diff(table.alpha) < 0) and np.all(np.diff(table.sigma) >= 0)
    assert np.all(np.diff(table.timestep) == 1) and table.timestep[0] == 0
    power = 1 if kind == "rectified_flow" else 2
    assert schedule.power == power
    np.testing.assert_allclose(table.alpha**power + table.sigma**power, 1, rtol=1e-12)


def test_rectified_flow_goes_straight_to_pure_noise():
    schedule = make_schedule("rectified_flow", 50)
    np.testing.assert_allclose(schedule.sigma, np.arange(1, 51) / 50)
    assert schedule.reaches_pure_noise
    # A latent on the path moves with the velocity that the network is to say.
    now, next = (schedule.at(jnp.int32(t)) for t in (30, 12))
    latents, noise = jax.random.normal(jax.random.key(0), (2, 3, 4))
    velocity = target_for("velocity", latents, noise, now)
    moved = add_noise(latents, noise, now) + (next.sigma - now.sigma) * velocity
    np.testing.assert_allclose(moved, add_noise(latents, noise, next), atol=1e-6)


@pytest.mark.parametrize("kind", ["scaled_linear", "cosine"])
def test_zero_terminal_snr_keeps_the_first_level_and_empties_the_last(kind):
    plain, schedule = make_schedule(kind), make_schedule(kind, zero_terminal_snr=True)
    assert schedule.alpha[-1] == 0 and schedule.sigma[-1] == 1
    assert schedule.reaches_pure_noise and not plain.reaches_pure_noise
    np.testing.assert_allclose(schedule.alpha[0], plain.alpha[0], rtol=1e-12)
    # The levels move linearly (Lin et al. 2023, Algorithm 1).
    share = (plain.alpha - plain.alpha[-1]) / (plain.alpha[0] - plain.alpha[-1])
    np.testing.assert_allclose(schedule.alpha, share * plain.alpha[0], rtol=1e-10)
    assert np.all(np.diff(schedule.alpha) < 0) and np.all(schedule.sigma <= 1)


@pytest.mark.parametrize(
    "options",
    [{}, {"zero_terminal_snr": True}, {"kind": "rectified_flow"}, {"kind": "cosine"}],
)
def test_levels_between_timesteps(options):
    schedule = make_schedule(num_train_timesteps=20, **options)
    for whole in (np.arange(20), np.arange(20.0)):
        points = schedule.between(whole)
        np.testing.assert_allclose(points.alpha, schedule.alpha, rtol=1e-12)
        np.testing.assert_allclose(points.sigma, schedule.sigma, rtol=1e-12)
    timesteps = np.array([0.0, 0.4, 7.75, 18.5, 19.0])
    points = schedule.between(timesteps)
    assert np.all(np.diff(points.alpha) < 0) and np.all(np.diff(points.sigma) > 0)
    total = points.alpha**schedule.power + points.sigma**schedule.power
    np.testing.assert_allclose(total, 1, rtol=1e-12)
    again = schedule.in_proportion(3 * points.alpha, 3 * points.sigma)
    for found, expected in zip(again, points, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize(
    "options, prediction_type, message",
    [
        ({"zero_terminal_snr": True}, "noise", "choose one of x0, v, velocity"),
        ({"kind": "rectified_flow"}, "noise", "choose one of x0, velocity"),
        ({"kind": "rectified_flow"}, "v", "choose one of x0, velocity"),
    ],
)
def test_prediction_that_does_not_go_with_the_schedule(
    options, prediction_type, message
):
    schedule = make_schedule(**options)
    with pytest.raises(ValueError, match=message):
        check_prediction(schedule, prediction_type)
    check_prediction(schedule, "x0")
    check_prediction(schedule, "velocity")


def test_how_a_prediction_goes_with_a_schedule_is_not_told_by_its_name(monkeypatch):
    for name in ("noise", "v"):
        monkeypatch.setitem(PREDICTION_TYPES, f"my_{name}", PREDICTION_TYPES[name])
    check_prediction(make_schedule(), "my_noise")
    for kind in ("scaled_linear", "linear", "cosine", "sqrt"):
        check_prediction(make_schedule(kind, zero_terminal_snr=True), "my_v")
    with pytest.raises(ValueError, match="'my_noise' says nothing about latents"):
        check_prediction(make_schedule(zero_terminal_snr=True), "my_noise")
    with pytest.raises(ValueError, match="'my_v' does not give back x0 and noise"):
        check_prediction(make_schedule("rectified_flow"), "my_v")


@pytest.mark.parametrize("kind", ["scaled_linear", "linear"])
def test_linear_kinds_start_and_end_at_the_betas_given(kind):
    betas = make_schedule(kind, 50, beta_start=0.002, beta_end=0.3).betas
    np.testing.assert_allclose(betas[[0, -1]], [0.002, 0.3])


@pytest.mark.parametrize(
    "name, options",
    [
        ("linear", {"kind": "scaled_linear"}),
        (
            "linear_sd",
            {"kind": "scaled_linear", "beta_start": 85e-5, "beta_end": 0.012},
        ),
        ("sqrt_linear", {"kind": "linear"}),
        ("sqrt", {"kind": "sqrt"}),
        ("cosine", {"kind": "cosine"}),
    ],
)
def test_betas_match_the_original(reference, name, options):
    expected = reference[f"betas_{name}"]
    np.testing.assert_allclose(make_schedule(**options).betas, expected, rtol=1e-10)


@pytest.mark.parametrize("v_posterior", [0.0, 0.3])
def test_posterior_matches_the_original(reference, v_posterior):
    schedule = make_schedule()
    ours = posterior(schedule.table, previous_levels(schedule))
    variance = posterior_variance(ours, v_posterior)
    for name, values in {
        "posterior_variance": variance,
        "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
        "posterior_mean_coef1": ours.x0_weight,
        "posterior_mean_coef2": ours.latents_weight,
    }.items():
        assert_close(values, reference[f"{name}_eps_v{v_posterior}"])


def test_posterior_agrees_with_bayes_rule_between_any_two_levels():
    now, next = (make_schedule().at(jnp.int32(t)) for t in (700, 300))
    ours = posterior(now, next)
    # z_now = ratio z_next + sqrt(beta) noise is the likelihood, z_next the prior.
    ratio = now.alpha / next.alpha
    beta = now.sigma**2 - ratio**2 * next.sigma**2
    precision = 1 / next.sigma**2 + ratio**2 / beta
    np.testing.assert_allclose(ours.variance, 1 / precision, rtol=1e-5)
    expected = next.alpha / next.sigma**2 / precision
    np.testing.assert_allclose(ours.x0_weight, expected, rtol=1e-5)
    expected = ratio / beta / precision
    np.testing.assert_allclose(ours.latents_weight, expected, rtol=1e-5)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_a_perfect_network_gives_back_x0_and_noise(prediction_type):
    point = make_schedule().at(jnp.array([3, 400, 900]))
    latents, noise = jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 2))
    noised = add_noise(latents, noise, point)
    output = target_for(prediction_type, latents, noise, point)
    x0 = predict_x0(output, noised, point, prediction_type)
    np.testing.assert_allclose(x0, latents, atol=2e-5)
    noise_pred = predict_noise(output, noised, point, prediction_type)
    np.testing.assert_allclose(noise_pred, noise, atol=2e-5)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_any_output_means_x0_and_noise_that_explain_the_latents(prediction_type):
    point = make_schedule().at(jnp.int32(321))
    latents, output = jax.random.normal(jax.random.key(1), (2, 3, 4, 4, 2))
    x0 = predict_x0(output, latents, point, prediction_type)
    noise = predict_noise(output, latents, point, prediction_type)
    np.testing.assert_allclose(add_noise(x0, noise, point), latents, atol=1e-5)


def test_noised_latents_keep_unit_variance():
    latents, noise = jax.random.normal(jax.random.key(2), (2, 8, 64, 64, 1))
    point = make_schedule().at(jnp.arange(8) * 130)
    variance = add_noise(latents, noise, point).var(axis=(1, 2, 3))
    np.testing.assert_allclose(variance, 1, atol=0.06)


def test_level_of_one_timestep_is_that_of_the_table():
    schedule = make_schedule("cosine")
    point = jax.jit(schedule.at)(jnp.array([[0, 17], [998, 999]]))
    assert point.alpha.dtype == jnp.float32 and point.alpha.shape == (2, 2)
    np.testing.assert_allclose(
        point.alpha**2, schedule.alphas_cumprod[point.timestep], rtol=1e-6
    )


@pytest.mark.parametrize(
    "options, message",
    [
        ({"kind": "sigmoid"}, "choose one of scaled_linear, linear"),
        ({"num_train_timesteps": 1}, "must be from 2 to"),
        ({"beta_end": 1.2}, "change beta_start"),
        ({"kind": "linear", "beta_start": 0.0}, "change beta_start"),
    ],
)
def test_wrong_schedule_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_schedule(**options)


def test_wrong_prediction_type_is_refused():
    point = make_schedule().at(jnp.int32(5))
    ones = jnp.ones((1, 2))
    with pytest.raises(ValueError, match="noise, x0, v, velocity"):
        target_for("epsilon", ones, ones, point)
