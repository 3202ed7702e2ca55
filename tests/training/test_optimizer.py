"""Learning rates as the original's, and optimisers from a section."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ldm_jax.errors import ConfigError
from ldm_jax.training.optimizer import (
    cosine_factor,
    linear_factor,
    make_learning_rate,
    make_optimizer,
)
from tests.common import load_case


@pytest.fixture(scope="module")
def schedules():
    return load_case("schedules").arrays


def test_warmup_and_cosine_as_the_original(schedules):
    # The original states three absolute factors; ours are relative to the peak, 0.1.
    steps = schedules["lr_steps"].astype(np.float32)
    factors = 0.1 * cosine_factor(steps, 1000, 50_000, start=0.01, end=0.001)
    expected = schedules["lr_warmup_cosine"]
    np.testing.assert_allclose(factors, expected, rtol=2e-5, atol=2e-6)


def test_warmup_and_line_as_the_original(schedules):
    steps = schedules["lr_steps"].astype(np.float32)
    factors = linear_factor(steps, 1000, 60_000, start=0.01, end=1e-6)
    np.testing.assert_allclose(factors, schedules["lr_linear"], rtol=2e-5, atol=2e-7)


def test_constant_holds_the_peak_after_the_warmup():
    rate = make_learning_rate(100, 2e-4, "constant", warmup_steps=10)
    np.testing.assert_allclose(
        [rate(s) for s in (0, 5, 10, 99)], [0, 1e-4, 2e-4, 2e-4], rtol=1e-6
    )


def test_decay_ends_with_the_run_unless_told_otherwise():
    assert make_learning_rate(100, 1.0, "cosine")(100) == pytest.approx(0, abs=1e-6)
    assert make_learning_rate(100, 1.0, "cosine", decay_steps=200)(100) == (
        pytest.approx(0.5)
    )


def test_gradients_are_clipped_by_their_global_norm():
    section = {"kind": "adam", "b1": 0.0, "b2": 0.0, "eps": 1.0}
    optimizer = make_optimizer(section, lambda step: 1.0, grad_clip=1.0)
    params = {"w": jnp.zeros(2)}
    updates, _ = optimizer.update({"w": jnp.array([3.0, 4.0])}, optimizer.init(params))
    clipped = jnp.array([0.6, 0.8])
    np.testing.assert_allclose(updates["w"], -clipped / (clipped + 1), rtol=1e-5)


def test_adamw_decays_every_parameter_as_pytorch_does():
    section = {"kind": "adamw", "weight_decay": 0.1}
    optimizer = make_optimizer(section, lambda step: 0.5)
    params = {"bias": jnp.ones(3)}
    updates, _ = optimizer.update(
        {"bias": jnp.zeros(3)}, optimizer.init(params), params
    )
    after = optax.apply_updates(params, updates)
    np.testing.assert_allclose(after["bias"], 0.95, rtol=1e-6)


@pytest.mark.parametrize(
    "section, message",
    [
        ({"kind": "adamm"}, 'did you mean "adam'),
        ({"kind": "adam", "weight_decay": 0.1}, "train.optimizer.weight_decay"),
    ],
)
def test_wrong_sections_are_named(section, message):
    with pytest.raises(ConfigError, match=message):
        make_optimizer(section, lambda step: 1.0)


def test_a_learning_rate_must_be_positive():
    with pytest.raises(ConfigError, match="learning_rate=0"):
        make_learning_rate(10, 0)


@pytest.mark.parametrize("off", [0, 0.0, None])
def test_clipping_can_be_off(off):
    optimizer = make_optimizer({"kind": "adam"}, lambda step: 1.0, grad_clip=off)
    params = {"w": jnp.ones(2)}
    updates, _ = optimizer.update({"w": jnp.ones(2)}, optimizer.init(params), params)
    np.testing.assert_allclose(updates["w"], -1.0, rtol=1e-5)
