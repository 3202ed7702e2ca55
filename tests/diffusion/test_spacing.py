"""Grids of noise levels: the count asked for, and the original's where it works."""

import numpy as np
import pytest

from ldm_jax.diffusion.samplers import make_points
from ldm_jax.diffusion.schedule import SchedulePoint, make_schedule, posterior
from ldm_jax.diffusion.spacing import SPACINGS
from tests.common import assert_close, load_case

SCHEDULE = make_schedule()
# Step counts at which the original leaves its table of 1000 timesteps.
BROKEN = {3, 9, 27, 36, 37, *range(101, 112), *range(251, 334), *range(501, 1001)}


@pytest.fixture(scope="module")
def reference():
    return load_case("schedules").arrays


@pytest.mark.parametrize("num_train_timesteps", [7, 100, 1000])
def test_uniform_gives_every_count_asked_for(num_train_timesteps):
    for num_steps in range(1, num_train_timesteps + 1):
        timesteps = SPACINGS["uniform"](num_train_timesteps, num_steps)
        assert len(timesteps) == num_steps
        assert np.all(np.diff(timesteps) > 0)
        assert timesteps[0] >= 0 and timesteps[-1] < num_train_timesteps


def test_original_works_where_the_original_does_and_says_so_elsewhere():
    for num_steps in range(1, 1001):
        if num_steps in BROKEN:
            with pytest.raises(ValueError, match="use 'uniform'"):
                make_points(SCHEDULE, num_steps, "original")
        else:
            points = make_points(SCHEDULE, num_steps, "original")
            stride = 1000 // num_steps
            np.testing.assert_array_equal(
                points.timestep[:-1][::-1], np.arange(1, 1001, stride)
            )


def test_uniform_is_the_originals_where_that_has_the_count_asked_for():
    for num_steps in set(range(1, 1001)) - BROKEN:
        original = SPACINGS["original"](1000, num_steps)
        if len(original) == num_steps:
            np.testing.assert_array_equal(
                SPACINGS["uniform"](1000, num_steps), original
            )


@pytest.mark.parametrize("num_steps", [15, 30, 60, 75, 150, 400])
def test_uniform_gives_the_count_where_the_original_gives_another(num_steps):
    assert len(SPACINGS["original"](1000, num_steps)) > num_steps
    assert len(SPACINGS["uniform"](1000, num_steps)) == num_steps


@pytest.mark.parametrize("spacing", ["uniform", "original"])
@pytest.mark.parametrize("num_steps", [5, 20, 50, 100, 200, 250])
def test_uniform_timesteps_match_the_original(reference, spacing, num_steps):
    expected = reference[f"ddim_timesteps_uniform_{num_steps}"]
    np.testing.assert_array_equal(SPACINGS[spacing](1000, num_steps), expected)


def test_quadratic_timesteps_match_the_original(reference):
    expected = reference["ddim_timesteps_quad_50"]
    np.testing.assert_array_equal(SPACINGS["quad"](1000, 50), expected)


@pytest.mark.parametrize("num_train_timesteps", [2, 4, 1000])
def test_quadratic_stays_in_the_table(num_train_timesteps):
    for num_steps in range(1, num_train_timesteps + 1):
        timesteps = SPACINGS["quad"](num_train_timesteps, num_steps)
        assert len(timesteps) == num_steps
        assert timesteps.min() >= 0 and timesteps.max() < num_train_timesteps


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_coefficients_match_the_original(reference, eta):
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
    # The original asks the network there for the timestep before again.
    assert points.timestep[-1] == points.timestep[-2] == 1
    assert points.timestep.dtype == np.int32


def test_grid_of_all_levels_ends_at_clean_data():
    points = make_points(SCHEDULE, 1000)
    np.testing.assert_array_equal(points.timestep[:-1], np.arange(1000)[::-1])
    assert points.alpha[-1] == 1 and points.sigma[-1] == 0


@pytest.mark.parametrize(
    "num_steps, spacing, message",
    [
        (0, "uniform", "from 1 to the schedule's 1000"),
        (1001, "quad", "from 1 to the schedule's 1000"),
        (50, "karras", "choose one of uniform, quad, original"),
    ],
)
def test_wrong_grid_is_refused(num_steps, spacing, message):
    with pytest.raises(ValueError, match=message):
        make_points(SCHEDULE, num_steps, spacing)
