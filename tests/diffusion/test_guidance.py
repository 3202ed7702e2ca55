"""Classifier-free guidance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks.accelerators.moved import COLLECTIVES
from ldm_jax.conditioners import Conditioning, make_conditioner
from ldm_jax.diffusion import guidance
from ldm_jax.diffusion.schedule import (
    PREDICTION_TYPES,
    make_schedule,
    predict_noise,
    predict_x0,
)

SCHEDULE = make_schedule()
POINT = SCHEDULE.at(jnp.int32(500))
KEYS = ("caption", "depth", "style")
INPUTS = {key: jnp.full((2, 1), 1.0 + i) for i, key in enumerate(KEYS)}
CONDITIONER = make_conditioner({key: {"kind": "raw", "slot": "vector"} for key in KEYS})


def network(shift):
    def output(latents, point):
        return jnp.tanh(latents * point.timestep / 700 + shift)

    return output


@pytest.fixture
def arrays():
    draws = np.random.default_rng(0).standard_normal((4, 8, 4, 4, 2), np.float32)
    latents, *shifts = jnp.asarray(draws)
    return latents, [shift[:, :1, :1] for shift in shifts]


def outputs_of(arrays):
    latents, shifts = arrays
    return [np.asarray(network(shift)(latents, POINT)) for shift in shifts]


# The conditions of each evaluation.


@pytest.mark.parametrize(
    "scale, expected, scales",
    [
        (3.0, ["", "cds"], [3.0]),
        (1, ["cds"], []),
        (0.0, ["", "cds"], [0.0]),
        ({"caption": 5.0}, ["ds", "cds"], [5.0]),
        ({"style": 2, "caption": 5}, ["d", "ds", "cds"], [2, 5]),
        ({"depth": 1.0, "caption": 5.0}, ["ds", "cds"], [5.0]),
        ({"caption": 5.0, "depth": 1}, ["s", "cs", "cds"], [5.0, 1]),
        ({"caption": 5.0, "depth": 5.0, "style": 5.0}, ["", "cds"], [5.0]),
        (dict.fromkeys(KEYS, 1), ["cds"], []),
        ({}, ["cds"], []),
    ],
)
def test_plan_lists_conditions_and_the_scales_between(scale, expected, scales):
    found, found_scales = guidance.plan(scale, KEYS)
    assert ["".join(sorted(key[0] for key in keys)) for keys in found] == expected
    assert found_scales == scales


def test_traced_scales_are_never_off():
    scale = jnp.float32(1)
    for given in (scale, {"caption": scale}):
        assert len(guidance.plan(given, KEYS)[1]) == 1
    assert len(guidance.plan(dict.fromkeys(KEYS, scale), KEYS)[1]) == 3


def test_dropped_inputs_are_null_or_negative():
    scale = {"style": 2.0, "caption": 5.0}
    negative = {"caption": jnp.full((2, 1), 7.0)}
    first, second, last = guidance.plan_inputs(scale, CONDITIONER, INPUTS, negative)[0]
    null = CONDITIONER.null_inputs(INPUTS)
    for inputs, style in ((first, null["style"]), (second, INPUTS["style"])):
        np.testing.assert_array_equal(inputs["caption"], negative["caption"])
        np.testing.assert_array_equal(inputs["depth"], INPUTS["depth"])
        np.testing.assert_array_equal(inputs["style"], style)
    assert all(last[key] is INPUTS[key] for key in KEYS)


@pytest.mark.parametrize(
    "scale, negative, message",
    [
        ({"mask": 2.0}, None, "'mask', which is not a condition"),
        (1.0, {"style": INPUTS["style"]}, "'style' need guidance"),
        ({"caption": 3.0}, {"style": INPUTS["style"]}, "'style' need guidance"),
        (3.0, {"style": jnp.zeros((2, 5))}, r"'style' of shape \(2, 5\)"),
        (3.0, {"mask": jnp.zeros((2, 5))}, "caption, depth, style"),
    ],
)
def test_what_does_not_fit_is_refused(scale, negative, message):
    with pytest.raises(ValueError, match=message) as error:
        guidance.plan_inputs(scale, CONDITIONER, INPUTS, negative)
    assert "\n" not in str(error.value)


# The guided network.


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_extrapolates_from_null_to_given(arrays, scale):
    latents, shifts = arrays
    null, given, _ = outputs_of(arrays)
    found = guidance.guide(network, shifts[:2], [scale])(latents, POINT)
    np.testing.assert_allclose(found, null + scale * (given - null), atol=2e-5)


def test_scales_act_one_after_the_other(arrays):
    latents, shifts = arrays
    null, one, both = outputs_of(arrays)
    found = guidance.guide(network, shifts, [2.0, 5.0])(latents, POINT)
    expected = null + 2 * (one - null) + 5 * (both - one)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    ones = guidance.guide(network, shifts, [1.0, 1.0])(latents, POINT)
    np.testing.assert_allclose(ones, both, atol=2e-6)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_guiding_the_output_is_guiding_x0_and_noise(arrays, prediction_type):
    latents, shifts = arrays
    null, given, _ = outputs_of(arrays)
    found = guidance.guide(network, shifts[:2], [4.0])(latents, POINT)
    for read in (predict_x0, predict_noise):
        a, b, both = (
            read(output, latents, POINT, prediction_type)
            for output in (null, given, found)
        )
        np.testing.assert_allclose(both, a + 4.0 * (b - a), atol=1e-4)


def test_scale_may_be_traced(arrays):
    latents, shifts = arrays
    guided = jax.jit(
        lambda scale: guidance.guide(network, shifts[:2], [scale])(latents, POINT)
    )
    expected = outputs_of(arrays)[1]
    np.testing.assert_allclose(guided(1.0), expected, atol=2e-5)
    assert np.abs(guided(2.0) - expected).max() > 0.1


@pytest.mark.parametrize("timestep, guided", [(199, 0), (200, 1), (800, 1), (801, 0)])
def test_outside_of_the_interval_nothing_is_guided(arrays, timestep, guided):
    latents, shifts = arrays
    point = SCHEDULE.at(jnp.int32(timestep))
    always = guidance.guide(network, shifts, [2.0, 5.0])(latents, point)
    found = guidance.guide(network, shifts, [2.0, 5.0], (200, 800))(latents, point)
    expected = always if guided else network(shifts[-1])(latents, point)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    other = network(shifts[-1])(latents, point) if guided else always
    assert np.abs(found - other).max() > 0.1


def test_interval_is_a_fraction_of_the_timesteps():
    assert guidance.timestep_interval(SCHEDULE, (0.0, 1.0)) is None
    assert guidance.timestep_interval(SCHEDULE, (0, 0.5)) == (0, 499.5)
    for wrong in ((0.5, 0.4), (-0.1, 1.0), (0.0, 2.0)):
        with pytest.raises(ValueError, match="0 <= low <= high <= 1"):
            guidance.timestep_interval(SCHEDULE, wrong)


@pytest.mark.parametrize("fraction", [0.0, 0.7, 1.0])
def test_rescaling_brings_the_spread_back(arrays, fraction):
    latents, shifts = arrays
    guided = guidance.guide(network, shifts[:2], [6.0])(latents, POINT)
    found = guidance.guide(network, shifts[:2], [6.0], None, fraction)(latents, POINT)
    given = outputs_of(arrays)[1]
    ratios = np.std(given, axis=(1, 2, 3)) / np.std(guided, axis=(1, 2, 3))
    expected = fraction * guided * ratios[:, None, None, None] + (1 - fraction) * guided
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(ratios - 1).min() > 0.1
    unguided = guidance.guide(network, shifts[:2], [1.0], None, fraction)(
        latents, POINT
    )
    np.testing.assert_allclose(unguided, given, atol=1e-5)


def test_empty_slots_stay_empty():
    filled = Conditioning(context=jnp.zeros((2, 1, 3)), vector=jnp.ones((2, 5)))
    joined = guidance.interleave([filled] * 3)
    assert joined.concat is None
    assert joined.context.shape == (6, 1, 3) and joined.vector.shape == (6, 5)


@pytest.mark.parametrize("interval", [None, (200, 800)])
def test_sharded_batch_stays_on_its_devices(arrays, interval):
    mesh = Mesh(np.array(jax.devices()), ("data",))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    latents, shifts = jax.device_put(arrays, sharding)

    @jax.jit
    def guided(latents, shifts, timestep):
        point = SCHEDULE.at(timestep)
        return guidance.guide(network, shifts, [3.0, 2.0], interval, 0.5)(
            latents, point
        )

    program = guided.lower(latents, shifts, jnp.int32(500)).compile().as_text()
    assert len(jax.devices()) > 1
    for collective in COLLECTIVES:
        assert collective not in program


@pytest.mark.parametrize(
    "scale, acts, half",
    [
        (1.0, False, 1.0),
        (4.0, True, 2.5),
        ({"caption": 1.0, "depth": 1.0}, False, (("caption", 1.0), ("depth", 1.0))),
        ({"caption": 5.0, "depth": 1.0}, True, (("caption", 3.0), ("depth", 1.0))),
    ],
)
def test_guidance_is_weakened_towards_none(scale, acts, half):
    options = guidance.GuidanceOptions(scale, interval=(0.1, 0.9), rescale=0.5)
    assert options.acts == acts
    assert options.at(0.5) == guidance.GuidanceOptions(half, (0.1, 0.9), 0.5)
    assert options.at(1.0) == options
    assert not options.at(0.0).acts


def test_one_program_draws_unguided_and_guided(arrays):
    latents, (null, given, _) = arrays
    options = guidance.GuidanceOptions(4.0)

    def draw(fraction):
        scales = [options.at(fraction).scale]
        return guidance.guide(network, [null, given], scales)(latents, POINT)

    unguided, guided = jax.lax.map(draw, jnp.arange(2.0))
    plain, other = network(null)(latents, POINT), network(given)(latents, POINT)
    np.testing.assert_allclose(unguided, other, atol=1e-6)
    np.testing.assert_allclose(guided, plain + 4 * (other - plain), atol=1e-5)
