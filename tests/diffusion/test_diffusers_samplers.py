"""Samplers and their grids against the trajectories of diffusers' schedulers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.diffusion.grids import make_points
from ldm_jax.diffusion.samplers import make_sampler
from ldm_jax.diffusion.schedule import make_schedule, predict_noise, predict_x0
from ldm_jax.diffusion.solve import sample
from tests.common import assert_close, load_case, nhwc

BETAS = {"beta_start": 0.00085, "beta_end": 0.012}
SCHEDULES = {
    "noise": make_schedule(**BETAS),
    "v": make_schedule(**BETAS),
    "v_zero_snr": make_schedule(**BETAS, zero_terminal_snr=True),
    "velocity": make_schedule("rectified_flow"),
}


@pytest.fixture(scope="module")
def arrays():
    return load_case("diffusers_samplers").arrays


def timestep_of_the_case(timestep, name):
    """The timestep that the network of the case was given, where ours gets another."""
    if name == "dpmpp_2m_20_karras":
        return jnp.round(timestep)  # Between timesteps, it rounds.
    if name == "flow_match_euler_20":
        return timestep + 1  # It counts from 1 to T, every other one from 0 to T - 1.
    return timestep


@pytest.mark.parametrize(
    "name, sampler, model, num_steps, spacing",
    [
        ("ddim20_leading_offset1", "ddim", "noise", 20, "leading"),
        ("ddim20_trailing", "ddim", "noise", 20, "trailing"),
        ("ddim20_v_trailing_zero_snr", "ddim", "v_zero_snr", 20, "trailing"),
        ("dpmpp_2m_20", "dpmpp_2m", "noise", 20, "linspace_open"),
        ("dpmpp_2m_20_karras", "dpmpp_2m", "noise", 20, "karras"),
        ("dpmpp_2m_10_v", "dpmpp_2m", "v", 10, "linspace_open"),
        ("unipc_bh2_10", "unipc", "noise", 10, "linspace_open"),
        ("euler_20", "euler", "noise", 20, "linspace"),
        ("heun_20", "heun", "noise", 20, "linspace"),
        ("flow_match_euler_20", "flow_euler", "velocity", 20, "linspace"),
    ],
)
def test_matches_diffusers(arrays, name, sampler, model, num_steps, spacing):
    schedule, prediction_type = SCHEDULES[model], model.partition("_")[0]
    # DDIM ends at training's first level there, the others at clean data.
    final_level = "first" if sampler == "ddim" else "clean"
    points = make_points(schedule, num_steps, spacing, final_level)
    found = np.asarray(timestep_of_the_case(points.timestep[:-1], name))
    expected = arrays[f"timesteps_{name}"]
    if sampler == "heun":
        expected = np.append(expected[0], expected[1::2])
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-4)

    cond = nhwc(arrays["cond"])

    def predict(latents, point):
        timestep = timestep_of_the_case(point.timestep, name)
        output = jnp.tanh(latents * (0.5 + timestep / 2000) + cond)
        return (
            predict_x0(output, latents, point, prediction_type),
            predict_noise(output, latents, point, prediction_type),
        )

    @jax.jit
    def run(latents):
        rngs = jax.random.split(jax.random.key(0), len(latents))
        return sample(make_sampler(sampler), predict, latents, points, rngs)

    latents = nhwc(arrays["x_T"])
    if sampler in ("euler", "heun"):
        latents = latents * points.sigma[0]  # It starts without the last bit of signal.
    assert_close(run(latents), nhwc(arrays[name]), 2e-4)
