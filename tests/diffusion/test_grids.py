"""Grids of noise levels: the count asked for, and CompVis's where that works."""

import numpy as np
import pytest

from configs import shapes_class
from ldm_jax import build, console
from ldm_jax.diffusion.grids import SPACINGS, make_points, starts_too_low
from ldm_jax.diffusion.posterior import posterior
from ldm_jax.diffusion.schedule import SchedulePoint, make_schedule
from tests.common import assert_close, load_case

SCHEDULE = make_schedule()
# Step counts at which CompVis leaves its table of 1000 timesteps.
BROKEN = {3, 9, 27, 36, 37, *range(101, 112), *range(251, 334), *range(501, 1001)}


def timesteps_of(spacing, num_steps, num_train_timesteps=1000):
    schedule = make_schedule(num_train_timesteps=num_train_timesteps)
    return SPACINGS[spacing].timesteps(schedule, num_steps)


@pytest.fixture(scope="module")
def reference():
    return load_case("schedules").arrays


@pytest.mark.parametrize("spacing", sorted(SPACINGS.keys() - {"compvis", "quad"}))
@pytest.mark.parametrize("num_train_timesteps", [7, 100, 1000])
def test_every_count_asked_for_is_given(spacing, num_train_timesteps):
    schedule = make_schedule(num_train_timesteps=num_train_timesteps)
    for num_steps in range(1, num_train_timesteps + 1):
        timesteps = SPACINGS[spacing].timesteps(schedule, num_steps)
        assert len(timesteps) == num_steps
        assert np.all(np.diff(timesteps) > 0)
        assert timesteps[0] >= 0 and timesteps[-1] <= num_train_timesteps - 1
        if spacing in ("trailing", "linspace", "linspace_open", "karras"):
            np.testing.assert_allclose(timesteps[-1], num_train_timesteps - 1)


@pytest.mark.parametrize("kind", ["scaled_linear", "rectified_flow"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_grids_of_lin_et_al(spacing, kind):
    # Their Table 2, which counts timesteps from 1.
    expected = {
        "leading": np.arange(10) * 100 + 1,
        "trailing": np.arange(1, 11) * 100 - 1,
        "linspace": np.linspace(0, 999, 10),
    }
    points = make_points(make_schedule(kind), 10, spacing)
    np.testing.assert_allclose(points.timestep[:-1][::-1], expected[spacing])


def test_karras_levels_are_evenly_spaced_in_the_seventh_root():
    points = make_points(SCHEDULE, 12, "karras")
    assert points.timestep.dtype == np.float32 and np.all(points.timestep <= 999)
    roots = (points.sigma[:-1] / points.alpha[:-1]) ** (1 / 7)
    np.testing.assert_allclose(np.diff(roots), np.diff(roots)[0], rtol=1e-3)
    first, last = (SCHEDULE.sigma[k] / SCHEDULE.alpha[k] for k in (0, -1))
    np.testing.assert_allclose(roots[[0, -1]] ** 7, [last, first], rtol=1e-5)
    # The network gets the place where between training's levels each is.
    between = SCHEDULE.between(points.timestep[:-1])
    np.testing.assert_allclose(between.alpha, points.alpha[:-1], atol=1e-6)


@pytest.mark.parametrize("kind", ["scaled_linear", "rectified_flow"])
def test_shift_multiplies_the_proportion_of_noise(kind):
    schedule = make_schedule(kind)
    plain = make_points(schedule, 8, "trailing")
    shifted = make_points(schedule, 8, "trailing", shift=3.0)
    for points in (plain, shifted):
        assert points.alpha[-1] == 1 and points.sigma[-1] == 0
    np.testing.assert_allclose(
        shifted.sigma[1:] / np.maximum(shifted.alpha[1:], 1e-6),
        3 * plain.sigma[1:] / np.maximum(plain.alpha[1:], 1e-6),
        rtol=1e-5,
    )
    assert shifted.timestep.max() <= 999 and shifted.timestep.dtype == np.float32
    assert np.all(shifted.timestep >= plain.timestep)
    if kind == "rectified_flow":  # Esser et al. 2024, Eq. 23.
        expected = 3 * plain.sigma / (1 + 2 * plain.sigma)
        np.testing.assert_allclose(shifted.sigma, expected, rtol=1e-6)
        np.testing.assert_allclose(shifted.timestep[0], 999)


@pytest.mark.parametrize("shift", [0.2, 3.0])
def test_shift_leaves_the_end(shift):
    points = make_points(SCHEDULE, 20, "uniform", "first", shift)
    end = SCHEDULE.sigma[0] if shift > 1 else 0.0
    np.testing.assert_allclose(points.sigma[-1], end, rtol=1e-6)
    assert np.all(np.diff(points.sigma) < 0) and np.all(np.diff(points.alpha) > 0)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_levels_lose_noise_and_end_where_asked(spacing):
    for final_level, sigma in (("clean", 0.0), ("first", SCHEDULE.sigma[0])):
        points = make_points(SCHEDULE, 20, spacing, final_level)
        ends_at_first = spacing in ("linspace", "karras")
        expected = 0.0 if ends_at_first else sigma
        np.testing.assert_allclose(points.sigma[-1], expected, rtol=1e-6)
        assert np.all(np.diff(points.sigma) < 0) and np.all(np.diff(points.alpha) > 0)
    usual = make_points(SCHEDULE, 20, spacing)
    first = spacing in ("uniform", "quad", "compvis", "leading")
    assert (usual.sigma[-1] > 0) == first


def test_compvis_spacing_works_where_theirs_does_and_says_so_elsewhere():
    for num_steps in range(1, 1001):
        if num_steps in BROKEN:
            with pytest.raises(ValueError, match="use 'uniform'"):
                make_points(SCHEDULE, num_steps, "compvis")
        else:
            points = make_points(SCHEDULE, num_steps, "compvis")
            stride = 1000 // num_steps
            np.testing.assert_array_equal(
                points.timestep[:-1][::-1], np.arange(1, 1001, stride)
            )


def test_uniform_is_compvis_spacing_where_that_has_the_count_asked_for():
    for num_steps in set(range(1, 1001)) - BROKEN:
        theirs = timesteps_of("compvis", num_steps)
        if len(theirs) == num_steps:
            np.testing.assert_array_equal(timesteps_of("uniform", num_steps), theirs)


def test_the_old_name_of_a_spacing_is_read():
    old, new = (make_points(SCHEDULE, 30, name) for name in ("original", "compvis"))
    np.testing.assert_array_equal(old.timestep, new.timestep)


@pytest.mark.parametrize("num_steps", [15, 30, 60, 75, 150, 400])
def test_uniform_gives_the_count_where_compvis_gives_another(num_steps):
    assert len(timesteps_of("compvis", num_steps)) > num_steps
    assert len(timesteps_of("uniform", num_steps)) == num_steps


@pytest.mark.parametrize("spacing", ["uniform", "compvis"])
@pytest.mark.parametrize("num_steps", [5, 20, 50, 100, 200, 250])
def test_uniform_timesteps_match_compvis(reference, spacing, num_steps):
    expected = reference[f"ddim_timesteps_uniform_{num_steps}"]
    np.testing.assert_array_equal(timesteps_of(spacing, num_steps), expected)


def test_quadratic_timesteps_match_compvis(reference):
    expected = reference["ddim_timesteps_quad_50"]
    np.testing.assert_array_equal(timesteps_of("quad", 50), expected)


@pytest.mark.parametrize("num_train_timesteps", [2, 4, 1000])
def test_quadratic_stays_in_the_table(num_train_timesteps):
    for num_steps in range(1, num_train_timesteps + 1):
        timesteps = timesteps_of("quad", num_steps, num_train_timesteps)
        assert len(timesteps) == num_steps
        assert timesteps.min() >= 0 and timesteps.max() < num_train_timesteps


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_coefficients_match_compvis(reference, eta):
    points = make_points(SCHEDULE, 50)
    now = SchedulePoint(*(values[:-1][::-1] for values in points))
    next = SchedulePoint(*(values[1:][::-1] for values in points))
    assert_close(now.alpha**2, reference["ddim50_alphas"])
    assert_close(next.alpha**2, reference["ddim50_alphas_prev"])
    sigmas = eta * np.sqrt(posterior(now, next).variance)
    assert_close(sigmas, reference[f"ddim50_sigmas_eta{eta}"])


def test_grid_ends_at_training_level_zero():
    points = make_points(SCHEDULE, 50)
    assert points.alpha.shape == (51,)
    assert points.alpha[-1] == np.float32(SCHEDULE.table.alpha[0])
    # CompVis asks the network there for the timestep before again.
    assert points.timestep[-1] == points.timestep[-2] == 1
    assert points.timestep.dtype == np.int32


def test_grid_of_all_levels_ends_at_clean_data():
    points = make_points(SCHEDULE, 1000)
    np.testing.assert_array_equal(points.timestep[:-1], np.arange(1000)[::-1])
    assert points.alpha[-1] == 1 and points.sigma[-1] == 0


@pytest.mark.parametrize(
    "num_steps, options, message",
    [
        (0, {}, "from 1 to the schedule's 1000"),
        (1001, {"spacing": "quad"}, "from 1 to the schedule's 1000"),
        (50, {"spacing": "even"}, "choose one of uniform, quad, compvis"),
        (50, {"final_level": "zero"}, "choose one of clean, first"),
        (50, {"shift": 0.0}, "shift must be more than 0"),
    ],
)
def test_wrong_grid_is_refused(num_steps, options, message):
    with pytest.raises(ValueError, match=message):
        make_points(SCHEDULE, num_steps, **options)


@pytest.mark.parametrize(
    "options", [{"zero_terminal_snr": True}, {"kind": "rectified_flow"}]
)
def test_karras_needs_signal_everywhere(options):
    with pytest.raises(ValueError, match="use 'trailing'"):
        make_points(make_schedule(**options), 50, "karras")


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("spacing", sorted(SPACINGS.keys() - {"karras"}))
def test_grids_that_miss_pure_noise_are_told(spacing, shift):
    low = spacing in ("uniform", "quad", "compvis", "leading")
    for schedule in (
        make_schedule("rectified_flow"),
        make_schedule(zero_terminal_snr=True),
    ):
        points = make_points(schedule, 20, spacing, shift=shift)
        assert starts_too_low(schedule, points) == low
    points = make_points(SCHEDULE, 20, spacing, shift=shift)
    assert not starts_too_low(SCHEDULE, points)


@pytest.mark.parametrize(
    ("spacing", "strength", "warned"),
    [(None, None, True), ("quad", 1.0, True), ("uniform", 0.5, False)]
    + [(name, None, False) for name in ("trailing", "linspace")],
)
def test_a_start_below_pure_noise_is_a_warning(spacing, strength, warned, caplog):
    console.warn_once.cache_clear()
    config = shapes_class.get_config("tiny")
    config.schedule.update(kind="rectified_flow", prediction_type="velocity")
    if spacing is not None:
        config.sample.spacing = spacing
    if strength is not None:
        config.sample.strength = strength
    build.check_model(config)
    assert ("sample.spacing=" in caplog.text) == warned
    assert ('set sample.spacing="trailing"' in caplog.text) == warned
