"""The classifier of noisy latents: CompVis's numbers, its poolings, its errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.models.classifier import POOLS, Classifier, log_prob
from ldm_jax.weights.state_dict import to_params, to_state_dict
from tests.common import assert_close, load_case, nhwc, random_variables
from tests.convert import networks

TINY = dict(
    out_channels=5,
    channels=8,
    channel_mult=(1, 2),
    num_res_blocks=1,
    num_heads=2,
    norm_groups=4,
)
LATENTS = jnp.asarray(np.random.default_rng(0).standard_normal((2, 4, 4, 3)), "float32")
TIMESTEPS = jnp.array([3, 977])


@functools.cache
def random_params(pool):
    """Parameters with nothing at zero, so that every path shows."""
    return random_variables(Classifier(**TINY, pool=pool), LATENTS, TIMESTEPS)


@functools.cache
def make_apply(pool):
    return jax.jit(functools.partial(Classifier(**TINY, pool=pool).apply))


def test_matches_original():
    case = load_case("encoder_unet_classifier")
    config = case.meta["config"]
    params = networks.convert_classifier(case.state_dict, config)
    model = Classifier(**networks.classifier_kwargs(config))
    output = jax.jit(model.apply)(
        {"params": params}, nhwc(case.arrays["x"]), case.arrays["timesteps"]
    )
    assert_close(output, case.arrays["output"])


@pytest.mark.parametrize("pool", POOLS)
def test_examples_do_not_mix_and_the_timestep_matters(pool):
    apply, params = make_apply(pool), random_params(pool)
    logits = apply(params, LATENTS, TIMESTEPS)
    assert logits.shape == (2, 5) and logits.dtype == jnp.float32
    assert_close(apply(params, LATENTS[::-1], TIMESTEPS[::-1])[::-1], logits, 1e-5)
    assert np.abs(apply(params, LATENTS, TIMESTEPS[::-1]) - logits).max() > 1e-3
    assert np.abs(apply(params, LATENTS + 1, TIMESTEPS) - logits).max() > 1e-3


@pytest.mark.parametrize("pool", POOLS)
def test_weights_go_there_and_back(pool):
    params = {"backbone": random_params(pool)["params"]}
    rows = networks.classifier_rows(Classifier(**TINY, pool=pool))
    state_dict = to_state_dict(rows, params)
    again = to_params(rows, state_dict, params)
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_attention_pooling_names_the_size_that_it_knows():
    apply, params = make_apply("attention"), random_params("attention")
    with pytest.raises(ValueError, match="pools 4 pixels by attention, got 4 x 2"):
        jax.eval_shape(apply, params, jnp.zeros((2, 8, 4, 3)), TIMESTEPS)
    apply, params = make_apply("adaptive"), random_params("adaptive")
    assert jax.eval_shape(apply, params, jnp.zeros((2, 8, 4, 3)), TIMESTEPS)


def test_unknown_pools_are_refused():
    with pytest.raises(ValueError, match="unknown pool 'max': choose one of attention"):
        Classifier(**TINY, pool="max")


def test_probabilities_of_all_classes_sum_to_one():
    model = Classifier(**TINY, pool="adaptive")
    params = random_params("adaptive")["params"]
    given = jax.jit(functools.partial(log_prob, model, params, LATENTS, TIMESTEPS))
    values = [given(jnp.full(2, label)) for label in range(5)]
    np.testing.assert_allclose(np.exp(values).sum(axis=0), 1, rtol=1e-5)
    assert np.ptp(values) > 0.01
