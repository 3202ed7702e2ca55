"""Samplers: order of convergence, reference runs, and what they have in common."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ldm_jax.diffusion.grids import make_points
from ldm_jax.diffusion.guidance import guide
from ldm_jax.diffusion.samplers import SAMPLERS, make_sampler, options_of
from ldm_jax.diffusion.sampling_method import SamplingMethod
from ldm_jax.diffusion.schedule import (
    SchedulePoint,
    add_noise,
    make_schedule,
    predict_x0,
)
from ldm_jax.diffusion.solve import normal, replace_known, sample
from tests.common import assert_close, load_case, nhwc

SCHEDULE = make_schedule()
# Every row of the table, and the stochastic middle of DDIM.
UNDER_TEST = {name: (name, {}) for name in SAMPLERS}
UNDER_TEST["ddim_eta"] = ("ddim", {"eta": 0.7})


def sampler_under_test(name):
    name, options = UNDER_TEST[name]
    return make_sampler(name, **options)


def tanh_noise(cond):
    """The noise model of the reference runs."""
    return lambda latents, point: jnp.tanh(
        latents * (0.5 + point.timestep / 2000) + cond
    )


def denoiser_of(network):
    """The denoiser of a network that predicts noise."""

    def predict(latents, point):
        noise = network(latents, point)
        return predict_x0(noise, latents, point, "noise"), noise

    return predict


def with_noises(sampler, noises):
    """The sampler with given noise in place of random; step i takes noises[i].

    For samplers that use noise and step each transition once.
    """

    def init(latents):
        return sampler.init(latents), jnp.int32(0)

    def step(predict, latents, state, now, next, noise):
        state, index = state
        noise = noises[index]
        latents, state = sampler.step(predict, latents, state, now, next, noise)
        return latents, (state, index + 1)

    return sampler._replace(init=init, step=step)


def with_trajectory(sampler, num_steps):
    """The sampler, and what gives the latents after each step of its last run.

    Args:
      sampler: SamplingMethod.
      num_steps: Number of steps of its runs.

    Returns:
      (SamplingMethod, () -> [num_steps, B, ...]).
    """
    seen = []

    def step(predict, latents, *arguments):
        moved, state = sampler.step(predict, latents, *arguments)
        note = lambda array: seen.append(np.array(array))  # noqa: E731
        jax.debug.callback(note, moved.astype(latents.dtype), ordered=True)
        return moved, state

    def trajectory():
        jax.effects_barrier()
        ends = np.cumsum(sampler.evaluations(num_steps)) - 1
        found = np.stack(seen)[ends]
        seen.clear()
        return found

    return sampler._replace(step=step), trajectory


def keys(count, seed=0):
    return jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(
        jnp.arange(count)
    )


# Order of convergence: data N(MEAN, STD^2) has its denoiser and all marginals in closed
# form, and every sampler is affine on it, so a run's mean and variance can be computed.
MEAN, STD = 0.7, 0.4


def gaussian_denoiser(latents, point):
    variance = (point.alpha * STD) ** 2 + point.sigma**2
    distance = (latents - point.alpha * MEAN) / variance
    return MEAN + point.alpha * STD**2 * distance, point.sigma * distance


def log_snr_grid(num_steps):
    log_snr = np.linspace(-3, 3, num_steps + 1)
    alpha, sigma = (1 / np.sqrt(1 + np.exp(-s * log_snr)) for s in (1, -1))
    return SchedulePoint(np.arange(num_steps + 1)[::-1], alpha, sigma)


@functools.partial(jax.jit, static_argnums=0)
def responses(sampler, points, start, noises):
    if sampler.stochastic:
        sampler = with_noises(sampler, noises)
    return sample(sampler, gaussian_denoiser, start, points, keys(len(start)))


def error_of_moments(sampler, points):
    """Distance of a run's mean and deviation from those of the exact marginal."""
    num_steps = len(points.alpha) - 1
    # Rows: response to nothing, to a unit start, to a unit noise in each step.
    start = np.zeros((num_steps + 2, 1))
    start[1] = 1
    noises = np.zeros((num_steps, num_steps + 2, 1))
    noises[np.arange(num_steps), np.arange(num_steps) + 2] = 1
    offset, *gains = np.asarray(responses(sampler, points, start, noises))[:, 0]
    start_gain, *noise_gains = np.array(gains) - offset
    means = MEAN * points.alpha
    deviations = np.sqrt((points.alpha * STD) ** 2 + points.sigma**2)
    mean = offset + start_gain * means[0]
    deviation = np.hypot(start_gain * deviations[0], np.linalg.norm(noise_gains))
    return np.hypot(mean - means[-1], deviation - deviations[-1])


@pytest.mark.parametrize("name", UNDER_TEST)
def test_order_of_convergence(name):
    sampler, counts = sampler_under_test(name), (32, 96)
    with jax.enable_x64(True):
        errors = [error_of_moments(sampler, log_snr_grid(count)) for count in counts]
    slope = np.log(errors[0] / errors[1]) / np.log(3)
    assert abs(slope - sampler.order) < 0.3, (slope, errors)
    assert errors[-1] < 0.01


@pytest.mark.parametrize("name", UNDER_TEST)
def test_goes_from_pure_noise_to_clean_data(name):
    errors = []
    for schedule in (
        make_schedule(zero_terminal_snr=True),
        make_schedule("rectified_flow"),
    ):
        points = make_points(schedule, 24, "trailing")
        assert points.alpha[0] == 0 and points.sigma[-1] == 0
        errors.append(error_of_moments(sampler_under_test(name), points))
    # What one step from noise to the mean of the data would leave is STD.
    assert errors[0] < 0.12 and errors[1] < 0.06, errors


# Reference runs.


@pytest.fixture(scope="module")
def case():
    arrays = load_case("samplers").arrays
    seed = int(arrays.pop("noises_seed"))
    noises = np.random.RandomState(seed).standard_normal((300, 2, 4, 8, 8))
    inputs = {"x_T", "cond", "uncond", "x0", "mask", "mask_noise"}
    arrays = {key: nhwc(values) for key, values in arrays.items()}
    given = {key: arrays.pop(key) for key in inputs}
    return given, np.moveaxis(noises, 2, -1).astype(np.float32), arrays


@pytest.mark.parametrize(
    "name, sampler, num_steps, options",
    [
        ("ddim20_eta0", ("ddim", {"eta": 0.0}), 20, {}),
        ("ddim20_eta1", ("ddim", {"eta": 1.0}), 20, {}),
        ("ddim50_eta0_guided", ("ddim", {}), 50, {"guided": True}),
        ("ddim20_eta0_masked", ("ddim", {}), 20, {"masked": True}),
        ("ddim20_eta1_temperature", ("ddim", {"eta": 1.0}), 20, {"temperature": 0.7}),
        ("plms20", ("plms", {}), 20, {}),
        ("plms50_guided", ("plms", {}), 50, {"guided": True}),
        ("ddpm1000", ("ddpm", {}), 1000, {}),
    ],
)
def test_matches_compvis(case, name, sampler, num_steps, options):
    given, noises, expected = case
    points = make_points(SCHEDULE, num_steps)
    if name == "ddpm1000":  # Its case counts noises by timestep, the others by step.
        noises = noises[points.timestep[:-1] % 300]
    network, replacement = tanh_noise(given["cond"]), None
    if options.pop("guided", False):
        network = guide(tanh_noise, [given["uncond"], given["cond"]], [3.0])
    if options.pop("masked", False):
        replacement = replace_known(given["x0"], given["mask"], given["mask_noise"])
    sampler = make_sampler(sampler[0], **sampler[1])

    @jax.jit
    def run(latents, noises):
        noises *= options.get("temperature", 1.0)
        own = with_noises(sampler, noises) if sampler.stochastic else sampler
        return sample(
            own, denoiser_of(network), latents, points, keys(2), replacement=replacement
        )

    assert_close(run(given["x_T"], noises), expected[name], 2e-4)


# What every sampler keeps.


def run_of(name, num_steps=12, **options):
    return jit_run(sampler_under_test(name), num_steps, **options)


def jit_run(sampler, num_steps, **options):
    points = make_points(SCHEDULE, num_steps)

    @jax.jit
    def run(latents, rngs):
        predict = denoiser_of(tanh_noise(0.1))
        return sample(sampler, predict, latents, points, rngs, **options)

    return run


def traced_run(name, num_steps=12):
    """A run, and what gives the trajectory of the last one."""
    sampler, trajectory = with_trajectory(sampler_under_test(name), num_steps)
    return jit_run(sampler, num_steps), trajectory


@functools.cache
def shared_run(name):
    return run_of(name)


@pytest.mark.parametrize("name", UNDER_TEST)
def test_same_keys_same_samples_and_no_second_compilation(name):
    run, latents = shared_run(name), normal(keys(4), (4, 4, 2))
    first = run(latents, keys(4, seed=1))
    np.testing.assert_array_equal(run(latents, keys(4, seed=1)), first)
    other = run(latents + 1, keys(4, seed=2))
    assert np.abs(other - first).max() > 1e-3
    assert run._cache_size() == 1


@pytest.mark.parametrize("name", UNDER_TEST)
def test_sample_depends_on_its_own_key_alone(name):
    run, latents, rngs = shared_run(name), normal(keys(4), (4, 4, 2)), keys(4, seed=1)
    whole = run(latents, rngs)
    order = np.array([2, 3, 3, 0])
    np.testing.assert_array_equal(run(latents[order], rngs[order]), whole[order])


@pytest.mark.parametrize("name", ["ddim_eta", "plms"])
def test_sample_does_not_depend_on_the_batch_size(name):
    run, latents, rngs = run_of(name), normal(keys(5), (4, 4, 2)), keys(5, seed=1)
    whole = run(latents, rngs)
    part = run(latents[3:], rngs[3:])
    np.testing.assert_allclose(part, whole[3:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["ddim_eta", "plms"])
def test_sample_does_not_depend_on_the_devices(name):
    run, latents, rngs = run_of(name), normal(keys(8), (4, 4, 2)), keys(8, seed=1)
    assert len(jax.devices()) == 8
    mesh = Mesh(np.array(jax.devices()), ("data",))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    spread = run(*jax.device_put((latents, rngs), sharding))
    assert len(spread.sharding.device_set) == 8
    np.testing.assert_allclose(spread, run(latents, rngs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("name", UNDER_TEST)
def test_keeps_the_dtype(name, dtype):
    latents = jnp.ones((2, 4, 4, 1), dtype)
    shape = jax.eval_shape(run_of(name), latents, keys(2))
    assert shape.dtype == dtype and shape.shape == latents.shape


@pytest.mark.parametrize("name", ["ddpm", "ddim_eta"])
def test_start_goes_on_where_a_whole_run_was(name):
    latents, rngs = normal(keys(2), (4, 4, 2)), keys(2, seed=1)
    run, trajectory = traced_run(name)
    final, levels = run(latents, rngs), trajectory()
    np.testing.assert_array_equal(levels[-1], final)
    rest = run_of(name, start=7)(levels[6], rngs)
    np.testing.assert_allclose(rest, final, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", UNDER_TEST)
def test_network_appears_once_in_the_program(name):
    evaluations = []

    def predict(latents, point):
        evaluations.append(point)
        return denoiser_of(tanh_noise(0.0))(latents, point)

    points = make_points(SCHEDULE, 6)
    jaxpr = jax.make_jaxpr(
        lambda latents: sample(
            sampler_under_test(name), predict, latents, points, keys(2)
        )
    )(jnp.ones((2, 3)))
    assert len(evaluations) == 1
    scans = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "scan"]
    count = {"plms": 7, "heun": 11}.get(name, 6)
    assert [eqn.params["length"] for eqn in scans] == [count]


@pytest.mark.parametrize(
    "name, num_steps",
    [("ddim", 1), ("ddim", 37), ("ddim", 501), ("ddim", 1000), ("plms", 1)]
    + [("heun", 1), ("heun", 2), ("unipc", 1), ("dpmpp_2m", 1)],
)
def test_any_count_works(name, num_steps):
    run, trajectory = traced_run(name, num_steps)
    final = run(jnp.ones((1, 2)), keys(1))
    assert len(trajectory()) == num_steps and np.all(np.isfinite(final))


@pytest.mark.parametrize("name", UNDER_TEST)
def test_a_level_may_come_twice(name):
    points = make_points(SCHEDULE, 50, "quad")
    assert np.any(np.diff(points.timestep) == 0)
    with jax.enable_x64(True):
        assert error_of_moments(sampler_under_test(name), points) < 0.05


@pytest.mark.parametrize("name", UNDER_TEST)
def test_known_pixels_reach_the_result(name):
    known, latents = normal(keys(2), (8, 8, 1)), normal(keys(2, 1), (8, 8, 1))
    mask = jnp.zeros((1, 8, 8, 1)).at[:, :4].set(1)

    def trusting(latents, point):  # Takes what it sees for the truth.
        return latents / point.alpha, jnp.zeros_like(latents)

    points, replacement = make_points(SCHEDULE, 20), replace_known(known, mask)
    run = jax.jit(
        lambda latents: sample(
            sampler_under_test(name),
            trusting,
            latents,
            points,
            keys(2, 2),
            replacement=replacement,
        )
    )
    error = np.abs(run(latents) - known).mean(axis=(0, 2, 3))
    assert error[:4].max() < 0.1 and error[4:].min() > 0.5


def test_replaced_pixels_are_known_latents_at_the_level():
    known, latents, noise = jax.random.normal(jax.random.key(0), (3, 2, 4, 4, 1))
    mask = jnp.zeros((2, 4, 4, 1)).at[:, 1].set(1)
    point = SCHEDULE.at(jnp.int32(300))
    replaced = replace_known(known, mask)(latents, point, noise)
    np.testing.assert_allclose(replaced[:, 1], add_noise(known, noise, point)[:, 1])
    np.testing.assert_array_equal(replaced[:, [0, 2, 3]], latents[:, [0, 2, 3]])


def run_step(step, num_steps, **options):
    """Runs a sampler that is just this step, from zero; returns the trajectory."""
    evaluations = options.pop("evaluations", np.ones_like)
    sampler = SamplingMethod(
        lambda latents: (),
        step,
        order=0,
        evaluations=lambda count: evaluations(np.arange(count)),
    )
    sampler, trajectory = with_trajectory(sampler, num_steps)
    latents, points = jnp.zeros((2, 16, 16, 1)), make_points(SCHEDULE, num_steps)
    sample(sampler, gaussian_denoiser, latents, points, keys(2), **options)
    return trajectory()


def test_the_state_keeps_its_types_and_must_keep_its_shapes():
    def init(latents):
        last, rng = jnp.zeros_like(latents), jax.random.key(0)
        return {"count": 0, "last": last, "rng": rng}

    def step(predict, latents, state, now, next, noise):
        # As after a denoiser of another type.
        count, moved = state["count"], (latents + state["count"]).astype(jnp.float16)
        return moved, state | {"count": jnp.float32(count + 1), "last": moved}

    points, latents = make_points(SCHEDULE, 4), jnp.zeros((2, 4, 4, 1))
    run = functools.partial(sample, predict=gaussian_denoiser, latents=latents)
    run = functools.partial(run, points=points, rngs=keys(2))
    moved = run(SamplingMethod(init, step, order=1))
    np.testing.assert_array_equal(moved, np.full_like(moved, 0 + 1 + 2 + 3))

    def grow(predict, latents, state, now, next, noise):
        return latents, (*state, latents)

    with pytest.raises(ValueError, match="step must return .latents, state. shaped"):
        run(SamplingMethod(lambda latents: (latents,), grow, order=1))


def test_a_row_may_have_options_of_its_own(monkeypatch):
    def of_order(order=2):
        return SamplingMethod(tuple, min, order)

    monkeypatch.setitem(SAMPLERS, "of_order", of_order)
    assert options_of("of_order") == ("order",)
    assert make_sampler("of_order", order=3) == SamplingMethod(tuple, min, 3)
    with pytest.raises(ValueError, match="no option 'eta': it takes order"):
        make_sampler("of_order", eta=0.5)


def test_every_step_of_every_sample_has_its_own_noise():
    def keep_noise(predict, latents, state, now, next, noise):
        return noise, state

    noises = np.asarray(run_step(keep_noise, 4)).reshape(8, -1)
    np.testing.assert_allclose(noises.std(axis=1), 1, atol=0.15)
    assert np.abs(np.corrcoef(noises) - np.eye(8)).max() < 0.25


def test_known_pixels_are_replaced_once_before_each_step():
    def count(predict, latents, state, now, next, noise):
        return latents + 1, state

    def reset(latents, point, noise):
        return 0 * latents

    def evaluations(steps):
        return steps + 1

    counts = run_step(count, 3, evaluations=evaluations, replacement=reset)
    counts = counts[:, 0, 0, 0, 0]
    np.testing.assert_array_equal(counts, [1, 2, 3])


def test_temperature_acts_on_the_noise():
    # A network that always says zero leaves nothing but the noise of the steps.
    def silent(latents, point):
        return jnp.zeros_like(latents), jnp.zeros_like(latents)

    points, shape = make_points(SCHEDULE, 50), (64, 64, 1)

    def last_noise(**options):
        run = jax.jit(
            lambda rngs: sample(
                make_sampler("ddim", eta=1.0),
                silent,
                jnp.zeros((2, *shape)),
                points,
                rngs,
                **options,
            )
        )
        return np.asarray(run(keys(2)))

    plain, cold = last_noise(), last_noise(temperature=0.5)
    np.testing.assert_allclose(cold, 0.5 * plain, rtol=1e-5)


def test_v_posterior_widens_the_ancestral_steps():
    latents = jnp.zeros((2, 16, 16, 1))
    points = make_points(SCHEDULE, 5)
    now, next = (SchedulePoint(*(values[k] for values in points)) for k in (0, 1))

    def silent(latents, point):
        return 0 * latents, 0 * latents

    def spread(v_posterior):
        step = make_sampler("ddpm", v_posterior=v_posterior).step
        noise = normal(keys(2), (16, 16, 1))
        return step(silent, latents, (), now, next, noise)[0].std()

    assert spread(0.0) < spread(0.5) < spread(1.0)


def test_noise_of_a_sample_is_that_of_its_key():
    rngs = keys(3)
    noise = normal(rngs, (4, 2))
    np.testing.assert_array_equal(noise[2], jax.random.normal(rngs[2], (4, 2)))


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("dpm", {}, "choose one of ddpm, ddim, plms"),
        ("plms", {"eta": 0.5}, "'plms' has no option 'eta'"),
        ("ddim", {"etta": 0.5}, "it takes eta"),
        ("heun", {"eta": 0.5}, "it takes none"),
        ("ddim", {"eta": 2.0}, "eta must be in .0, 1., got 2.0"),
    ],
)
def test_wrong_sampler_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_sampler(name, **options)


def test_start_beyond_the_last_step_is_refused():
    with pytest.raises(ValueError, match="start must be in"):
        run_of("ddim", start=12)(jnp.ones((1, 2)), keys(1))
