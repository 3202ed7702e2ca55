"""diffusers' layout of the same networks, against what diffusers computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.convert.diffusers import names as diffusers
from ldm_jax.models.autoencoder import KLAutoencoder
from ldm_jax.models.unet import UNet
from ldm_jax.weights.state_dict import to_params, to_state_dict
from tests.common import assert_close, load_case, nhwc


@pytest.mark.parametrize(
    "name, num_heads",
    [("diffusers_unet_sd1", 8), ("diffusers_unet_sd2_linear", (2, 4))],
)
def test_unet_matches_diffusers(name, num_heads):
    case = load_case(name)
    unet = UNet(
        out_channels=4,
        channels=32,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_factors=(1,),
        num_heads=num_heads,
        transformer_depth=1,
    )
    inputs = nhwc(case.arrays["x"]), case.arrays["timesteps"], case.arrays["context"]
    target = jax.eval_shape(unet.init, jax.random.key(0), *map(jnp.asarray, inputs))
    rows = diffusers.unet_rows(unet, linear_projection="linear" in name)
    params = to_params(rows, case.state_dict, target["params"])
    assert_close(
        jax.jit(unet.apply)({"params": params}, *inputs), nhwc(case.arrays["output"])
    )
    _assert_same(to_state_dict(rows, params), case.state_dict)


def test_autoencoder_matches_diffusers():
    case = load_case("diffusers_autoencoder_kl")
    model = KLAutoencoder(
        channels=32, channel_mult=(1, 2), num_res_blocks=1, z_channels=4, embed_dim=4
    )
    images = nhwc(case.arrays["x"])
    target = jax.eval_shape(model.init, jax.random.key(0), jnp.asarray(images))
    rows = diffusers.autoencoder_rows(model)
    params = to_params(rows, case.state_dict, target["params"])
    decoded, posterior = jax.jit(model.apply)({"params": params}, images)
    assert_close(posterior.mean, nhwc(case.arrays["mean"]))
    assert_close(posterior.logvar, nhwc(case.arrays["logvar"]))
    assert_close(decoded, nhwc(case.arrays["decoded_mode"]))
    _assert_same(to_state_dict(rows, params), case.state_dict)


def _assert_same(state_dict, expected):
    assert state_dict.keys() == expected.keys()
    for key, array in expected.items():
        np.testing.assert_array_equal(state_dict[key], array, err_msg=key)
