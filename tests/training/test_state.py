"""The moving average, keys from (seed, step), and micro-batches."""

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.training.step import accumulate, step_rngs, update_ema
from tests.common import assert_close, load_case


def test_average_warms_up_as_the_original():
    # The case follows a scalar whose value at update i is i.
    expected = load_case("schedules").arrays["ema_trace"]
    ema = {"x": jnp.float32(0)}
    trace = []
    for step in range(len(expected)):
        ema = update_ema(ema, {"x": jnp.float32(step + 1)}, step, 0.9999)
        trace.append(float(ema["x"]))
    assert_close(trace, expected)


def test_average_reaches_its_decay():
    ema = update_ema({"x": jnp.float32(0)}, {"x": jnp.float32(1)}, 10**6, 0.9)
    np.testing.assert_allclose(ema["x"], 0.1, rtol=1e-5)


def test_keys_depend_on_seed_step_and_name():
    keys = [
        step_rngs(seed, step, ("noise", "dropout"))[name]
        for seed in (0, 1)
        for step in (0, 1)
        for name in ("noise", "dropout")
    ]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == 8
    again = step_rngs(1, 1, ("noise", "dropout"))["dropout"]
    assert (jax.random.key_data(again) == jax.random.key_data(keys[-1])).all()


def test_micro_batches_average_to_the_whole_batch():
    params = jnp.arange(3.0)
    batch = {"x": jax.random.normal(jax.random.key(0), (12, 3))}

    def gradients(rows, index, count):
        loss = lambda p: jnp.mean(jnp.sin(rows["x"] @ p) ** 2)  # noqa: E731
        value, grad = jax.value_and_grad(loss)(params)
        return {"grad": grad, "loss": value}, count + len(rows["x"])

    whole, rows = accumulate(gradients, batch, 0, parts=1)
    parts, rows_in_parts = accumulate(gradients, batch, 0, parts=4)
    assert rows == rows_in_parts == 12
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), whole, parts)
