"""Codebooks: the reference cases, nearest codes, gradients, totals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.convert.compvis.names import autoencoder_rows
from ldm_jax.convert.compvis.options import autoencoder_kwargs
from ldm_jax.models import quantizer
from ldm_jax.models.autoencoder import VQAutoencoder
from ldm_jax.models.quantizer import (
    CosineQuantizer,
    GumbelQuantizer,
    VectorQuantizer,
)
from ldm_jax.weights.state_dict import to_params
from tests.common import assert_close, load_case, nhwc, random_variables
from tests.convert.networks import autoencoder_shapes

LATENTS = jax.random.normal(jax.random.key(0), (4, 8, 6, 3))
MODEL = VectorQuantizer(num_codes=16, features=3)


@functools.cache
def variables():
    # Wide enough that every code is somewhere the nearest.
    codes = jax.random.normal(jax.random.key(1), (16, 3))
    return {"params": {"embedding": codes}}


def quantize(latents):
    return jax.jit(MODEL.apply)(variables(), latents)


@pytest.mark.parametrize("name", ["autoencoder_vq_f2", "autoencoder_vq_f4_noattn"])
def test_matches_original(name):
    case = load_case(name)
    config = case.meta["config"]
    arrays = {k: nhwc(v) if v.ndim == 4 else v for k, v in case.arrays.items()}
    model = VQAutoencoder(
        **autoencoder_kwargs(config["ddconfig"], config["embed_dim"]),
        num_codes=config["n_embed"],
    )
    rows, target = autoencoder_rows(model), autoencoder_shapes(model)
    variables = {"params": to_params(rows, case.state_dict, target)}

    def apply(inputs, **options):
        return jax.jit(functools.partial(model.apply, **options))(variables, inputs)

    posterior = apply(arrays["x"], method="encode")
    assert_close(posterior.mode(), arrays["pre_quant"])
    latents, quantized = apply(posterior, method="regularise")
    assert_close(latents, arrays["quantized"])
    np.testing.assert_array_equal(quantized.indices.ravel(), arrays["indices"])
    commitment, codebook = (quantized.losses[k] for k in ("commitment", "codebook"))
    assert_close(commitment + 0.25 * codebook, arrays["codebook_loss_legacy"], 2e-4)
    assert_close(0.25 * commitment + codebook, arrays["codebook_loss"], 2e-4)
    assert_close(apply(arrays["pre_quant"], method="decode"), arrays["decoded"])
    decode = functools.partial(apply, method="decode", quantize=False)
    assert_close(decode(arrays["quantized"]), arrays["decoded"])


def test_a_code_of_a_code_is_itself():
    indices = jnp.arange(16).reshape(2, 4, 2)
    codes = MODEL.apply(variables(), indices, method="lookup")
    np.testing.assert_array_equal(
        MODEL.apply(variables(), codes, method="indices"), indices
    )
    quantized = quantize(codes)
    np.testing.assert_array_equal(quantized.latents, codes)
    assert quantized.losses["commitment"] == 0


def test_gradients():
    """Straight through to the latents; each loss moves one side only."""

    def parts(variables, latents, name):
        quantized = MODEL.apply(variables, latents)
        weights = jnp.arange(latents.size).reshape(latents.shape)
        return jnp.sum(weights * quantized.latents), quantized.losses[name]

    def plain(variables, latents):
        codes = variables["params"]["embedding"]
        nearest = jnp.argmin(
            jnp.sum((latents[..., None, :] - codes[None, None, None]) ** 2, -1), -1
        )
        return jnp.mean((codes[nearest] - latents) ** 2)

    def gradients(function):
        return jax.jit(jax.grad(function, argnums=(0, 1)))(variables(), LATENTS)

    expected = gradients(plain)
    for name, side in (("codebook", 0), ("commitment", 1)):
        grads = gradients(lambda v, x, n=name: parts(v, x, n)[1])
        for i in (0, 1):
            ours, theirs = map(jax.tree.leaves, (grads[i], expected[i]))
            assert_close(ours[0], theirs[0] * (i == side), 2e-5 if i == side else 0)
    through = gradients(lambda v, x: parts(v, x, "codebook")[0])
    np.testing.assert_array_equal(through[1].ravel(), np.arange(LATENTS.size))
    assert np.abs(through[0]["params"]["embedding"]).max() == 0


def test_totals_are_those_of_each_code():
    quantized = quantize(LATENTS)
    flat, indices = np.reshape(LATENTS, (-1, 3)), np.ravel(quantized.indices)
    counts = np.bincount(indices, minlength=16)
    np.testing.assert_array_equal(quantized.counts, counts)
    sums = [flat[indices == code].sum(0) for code in range(16)]
    assert_close(quantized.sums, np.stack(sums))


def test_blocks_change_nothing(monkeypatch):
    whole = quantize(LATENTS)
    monkeypatch.setattr(quantizer, "MAX_DISTANCES", 4 * 6 * 16 * 3)
    blocks = jax.jit(MODEL.apply)(variables(), LATENTS)
    assert "while" in jax.jit(MODEL.apply).lower(variables(), LATENTS).as_text()
    np.testing.assert_array_equal(whole.indices, blocks.indices)
    np.testing.assert_array_equal(whole.counts, blocks.counts)
    assert_close(blocks.sums, whole.sums)


def test_codes_start_small():
    params = MODEL.init(jax.random.key(0), LATENTS)["params"]
    codes = params["embedding"]
    assert codes.shape == (16, 3) and codes.dtype == jnp.float32
    assert 0.9 / 16 < np.abs(codes).max() <= 1 / 16


def test_cosine_codes_are_directions():
    model = CosineQuantizer(num_codes=16, features=3)
    codes = model.apply(variables(), method="codes")
    np.testing.assert_allclose(np.linalg.norm(codes, axis=-1), 1, rtol=1e-5)
    indices = model.apply(variables(), LATENTS, method="indices")
    cosines = jnp.einsum("bhwc,nc->bhwn", LATENTS, codes)
    np.testing.assert_array_equal(indices, cosines.argmax(-1))
    longer = model.apply(variables(), 7 * LATENTS, method="indices")
    np.testing.assert_array_equal(longer, indices)
    again = model.apply(variables(), codes[indices], method="indices")
    np.testing.assert_array_equal(again, indices)


@functools.cache
def gumbel():
    model = GumbelQuantizer(num_codes=16, features=3)
    return model, random_variables(model, LATENTS, seed=2)


def test_gumbel_draws_codes_by_their_logits():
    model, variables = gumbel()
    codes = variables["params"]["embedding"]
    apply = jax.jit(model.apply)
    draws = [apply(variables, LATENTS, jax.random.key(i)) for i in (0, 0, 1)]
    np.testing.assert_array_equal(draws[0].indices, draws[1].indices)
    assert (draws[0].indices != draws[2].indices).any()
    np.testing.assert_allclose(draws[0].latents, codes[draws[0].indices], atol=1e-6)
    likeliest = apply(variables, LATENTS)
    indices = model.apply(variables, LATENTS, method="indices")
    np.testing.assert_array_equal(likeliest.indices, indices)
    layer = variables["params"]["to_logits"]
    logits = LATENTS @ layer["kernel"] + layer["bias"][None, None, None]
    np.testing.assert_array_equal(indices, logits.argmax(-1))
    shares = jax.nn.softmax(logits)
    entropy = -jnp.sum(shares * jnp.log(shares), axis=-1).mean()
    divergence = likeliest.losses["divergence"]
    np.testing.assert_allclose(divergence, np.log(16) - entropy, rtol=1e-4)


def test_gumbel_gradient_is_that_of_the_softmax():
    model, variables = gumbel()

    def drawn(latents):
        return jnp.sum(model.apply(variables, latents, None, 0.5).latents[..., 0])

    def soft(latents):
        layer = variables["params"]["to_logits"]
        logits = latents @ layer["kernel"] + layer["bias"][None, None, None]
        shares = jax.nn.softmax(logits / 0.5)
        return jnp.sum(shares @ variables["params"]["embedding"][:, 0])

    gradients = (jax.jit(jax.grad(function))(LATENTS) for function in (drawn, soft))
    assert_close(*gradients, 1e-4)


def test_unknown_quantizer_is_named():
    with pytest.raises(ValueError, match="'knn': choose nearest, cosine, gumbel"):
        VQAutoencoder(32, (1,), 1, 3, 3, quantizer="knn")
