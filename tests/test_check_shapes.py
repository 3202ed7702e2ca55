"""`pytest --check_shapes` works with the JAX and the flax that are installed."""

import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import jaxtyping
import pytest

from ldm_jax.models.unet import UNet

ROOT = pathlib.Path(__file__).parent.parent


def test_shapes_are_checked_in_every_call(pytestconfig):
    """So that the flag does not rot where nobody gives it."""
    if not pytestconfig.getoption("--check_shapes"):
        # This test once more; what is imported already cannot be checked any more.
        command = [sys.executable, "-m", "pytest", "--check_shapes", __file__]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
        return
    network = UNet(4, **UNet.tiny)
    right, wrong = jnp.zeros((2, 8, 8, 4)), jnp.zeros((2, 8, 4))
    steps = jnp.zeros(2, jnp.int32)
    key = jax.random.key(0)
    # Without a compiler.
    made, _ = jax.eval_shape(network.init_with_output, key, right, steps)
    assert made.shape == right.shape
    with pytest.raises(jaxtyping.TypeCheckError, match="'latents'"):
        jax.eval_shape(network.init_with_output, key, wrong, steps)
    with pytest.raises(jaxtyping.TypeCheckError, match="'timesteps'"):
        jax.eval_shape(network.init_with_output, key, right, steps[:1])
