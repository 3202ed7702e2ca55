"""The first stage's contract: shapes for every factor, posterior, precision, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.build import make_first_stage
from ldm_jax.errors import ConfigError
from ldm_jax.models.autoencoder import Autoencoder, last_layer
from ldm_jax.models.first_stages import FIRST_STAGES
from ldm_jax.models.posteriors import DiagonalGaussian
from tests.common import assert_close, random_variables

TINY = dict(
    kind="kl",
    channels=32,
    channel_mult=(1, 2),
    num_res_blocks=1,
    z_channels=4,
    embed_dim=3,
    attention_factors=(2,),
)
IMAGES = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3), minval=-1)


@functools.cache
def variables():
    return random_variables(make_first_stage(TINY), IMAGES)


@functools.cache
def output(**changes):
    model = make_first_stage(TINY | changes)
    return jax.jit(model.apply)(variables(), IMAGES)


@pytest.mark.parametrize(
    "kind",
    [k for k, row in FIRST_STAGES.items() if issubclass(row.module, Autoencoder)],
)
@pytest.mark.parametrize("levels", [1, 2, 3, 4, 5, 6])
def test_shapes_for_every_factor(kind, levels):
    model = make_first_stage(TINY | dict(kind=kind, channel_mult=(1,) * levels))
    factor = model.downsampling_factor
    assert factor == 2 ** (levels - 1) and model.latent_channels == 3
    images = jax.ShapeDtypeStruct((2, 2 * factor, factor, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), images)

    def run(params, images):
        posterior = model.apply(params, images, method="encode")
        latents = posterior.sample(jax.random.key(0))
        return latents, model.apply(params, latents, method="decode")

    latents, decoded = jax.eval_shape(run, params, images)
    assert latents.shape == (2, 2, 1, 3) and latents.dtype == jnp.float32
    assert decoded.shape == images.shape and decoded.dtype == jnp.float32


def test_vq_latents_are_those_before_quantisation():
    model = make_first_stage(TINY | dict(kind="vq", num_codes=8))
    variables = random_variables(model, IMAGES)

    def apply(inputs, **options):
        return jax.jit(functools.partial(model.apply, **options))(variables, inputs)

    posterior = apply(IMAGES, method="encode")
    latents = posterior.mode()
    np.testing.assert_array_equal(posterior.sample(jax.random.key(0)), latents)
    codes = apply(apply(latents, method="code_indices"), method="codes")
    assert np.abs(codes - latents).max() > 0.01
    decoded = apply(latents, method="decode")
    np.testing.assert_array_equal(
        apply(codes, method="decode", quantize=False), decoded
    )
    assert np.abs(apply(latents, method="decode", quantize=False) - decoded).max() > 0
    np.testing.assert_allclose(apply(IMAGES)[0], decoded, atol=1e-5)


def test_gradients_pass_the_quantiser():
    model = make_first_stage(TINY | dict(kind="vq", num_codes=8))
    variables = jax.tree.map(jnp.asarray, random_variables(model, IMAGES))

    def total(latents, quantize):
        method = functools.partial(model.apply, variables, method="decode")
        return jnp.sum(method(latents, quantize=quantize) ** 2)

    latents = jax.random.normal(jax.random.key(1), (1, 2, 2, 3))
    indices = model.apply(variables, latents, method="code_indices")
    codes = model.apply(variables, indices, method="codes")
    gradient = jax.jit(jax.grad(total), static_argnums=1)
    through = gradient(latents, True)
    assert np.abs(through).max() > 1e-3
    assert_close(through, gradient(codes, False), 1e-5)


def test_identity_does_nothing():
    model = make_first_stage(dict(kind="identity"))
    assert model.downsampling_factor == 1 and model.latent_channels == 3
    assert not model.init(jax.random.key(0), IMAGES)
    posterior = model.apply({"params": {}}, IMAGES, method="encode")
    np.testing.assert_array_equal(posterior.mode(), IMAGES)
    np.testing.assert_array_equal(posterior.sample(jax.random.key(0)), IMAGES)
    decoded = model.apply({"params": {}}, IMAGES, method="decode")
    np.testing.assert_array_equal(decoded, IMAGES)


def test_decoding_is_features_then_last_layer():
    model, params = make_first_stage(TINY), variables()["params"]
    reconstruct = functools.partial(model.apply, method="reconstruct")
    images, _, features = jax.jit(reconstruct)(variables(), IMAGES)
    np.testing.assert_allclose(images, output()[0], atol=1e-5)
    function, kernel = last_layer(model, params, features)
    np.testing.assert_allclose(function(kernel), images, atol=1e-5)
    bias = np.broadcast_to(params["to_images"]["bias"], images.shape)
    np.testing.assert_allclose(function(0 * kernel), bias, atol=1e-7)


def test_sampling_needs_a_key_and_follows_it():
    model = make_first_stage(TINY)
    apply = jax.jit(model.apply)
    runs = [apply(variables(), IMAGES, jax.random.key(i))[0] for i in (0, 0, 1)]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert np.abs(runs[0] - runs[2]).max() > 1e-4


def test_bfloat16_is_close_with_float32_ends():
    exact, posterior = output()
    rough, rough_posterior = output(dtype="bfloat16")
    assert rough.dtype == rough_posterior.mean.dtype == jnp.float32
    assert 0 < np.abs(rough - exact).max() < 0.1 * np.abs(exact).max()
    error = np.abs(rough_posterior.mean - posterior.mean)
    assert error.max() < 0.1 * np.abs(posterior.mean).max()


def test_remat_changes_memory_only():
    np.testing.assert_array_equal(output(remat=True)[0], output()[0])


def test_no_attention_leaves_no_attention_parameters():
    model = make_first_stage(TINY | dict(attention_factors=(), mid_attention=False))
    shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    assert "attention" not in str(jax.tree.structure(shapes))


def test_tanh_output_bounds_images():
    params = jax.tree.map(lambda p: 5 * p, variables())
    model = make_first_stage(TINY | dict(tanh_output=True))
    assert np.abs(jax.jit(model.apply)(params, IMAGES)[0]).max() <= 1


def test_images_that_do_not_halve_are_named():
    model = make_first_stage(TINY)
    with pytest.raises(ValueError, match="images of 8 x 7 .* multiples of 2"):
        model.apply(variables(), IMAGES[:, :, :7])


def test_unknown_kind_and_key_are_named():
    with pytest.raises(ConfigError, match="klx.*kl"):
        make_first_stage(TINY | dict(kind="klx"))
    with pytest.raises(ConfigError, match="chanels"):
        make_first_stage(TINY | dict(chanels=3))


def gaussian(mean, std):
    shape = (3, 32, 32, 4)
    return DiagonalGaussian(jnp.full(shape, mean), jnp.full(shape, 2 * jnp.log(std)))


def test_divergence_of_a_standard_normal_is_zero():
    np.testing.assert_allclose(gaussian(0.0, 1.0).kl(), 0, atol=1e-6)
    assert (gaussian(0.5, 1.0).kl() > 0).all() and (gaussian(0.0, 0.5).kl() > 0).all()


def test_divergence_and_likelihood_agree_with_samples():
    """KL(q, p) = E_q[log q - log p], estimated from many samples."""
    posterior, prior = gaussian(0.7, 0.4), gaussian(0.0, 1.0)
    samples = posterior.sample(jax.random.key(0))
    estimate = prior.nll(samples) - posterior.nll(samples)
    np.testing.assert_allclose(estimate, posterior.kl(), rtol=0.03)
    np.testing.assert_allclose(samples.std(), 0.4, rtol=0.03)


def test_mode_is_most_likely():
    posterior = gaussian(0.7, 0.4)
    assert (posterior.nll(posterior.mode()) < posterior.nll(posterior.mean + 0.1)).all()


def test_given_noise_is_used():
    posterior = gaussian(1.0, 2.0)
    ones = jnp.ones((3, 32, 32, 4))
    assert_close(posterior.sample(noise=ones), 3 * ones)
