"""The contract of first stages, on every row of FIRST_STAGES."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.build import make_first_stage
from ldm_jax.models.first_stages import DEFAULT_KIND, FIRST_STAGES, name_of, row_of
from ldm_jax.training.first_stage_losses import REDUCTIONS
from ldm_jax.training.loss_options import LossOptions
from tests.common import random_variables

CODER = dict(
    channels=8,
    channel_mult=(1, 2),
    num_res_blocks=1,
    z_channels=4,
    embed_dim=3,
    norm_groups=4,
    mid_attention=False,
)
# A small one of each kind.
OPTIONS = {"kl": CODER, "vq": CODER | dict(num_codes=8), "identity": {}}
IMAGES = np.random.default_rng(0).uniform(-1, 1, (2, 8, 12, 3)).astype(np.float32)
TRAINED = [kind for kind, row in FIRST_STAGES.items() if row.regulariser]

every_kind = pytest.mark.parametrize("kind", FIRST_STAGES)
trained_kinds = pytest.mark.parametrize("kind", TRAINED)


@functools.cache
def made(kind):
    """(module, parameters) of a small first stage."""
    module = make_first_stage(OPTIONS[kind] | {"kind": kind})
    return module, random_variables(module, IMAGES).get("params", {})


def applied(kind, method, *arguments, **options):
    module, params = made(kind)
    return module.apply({"params": params}, *arguments, method=method, **options)


@functools.cache
def posterior(kind):
    return applied(kind, "encode", IMAGES)


def test_the_contract_is_checked_on_every_kind():
    same = OPTIONS.keys() == FIRST_STAGES.keys()
    assert same, "OPTIONS needs a small section of every kind"
    assert DEFAULT_KIND in FIRST_STAGES
    modules = [row.module for row in FIRST_STAGES.values()]
    assert len(set(modules)) == len(modules)


@every_kind
def test_a_module_tells_its_row(kind):
    module, _ = made(kind)
    assert name_of(module) == kind and row_of(module) is FIRST_STAGES[kind]


def test_a_module_without_a_row_is_named():
    with pytest.raises(ValueError, match="has the module Dense"):
        row_of(nn.Dense(3))


@every_kind
def test_latents_have_the_size_that_the_module_says(kind):
    module, _ = made(kind)
    factor, channels = module.downsampling_factor, module.latent_channels
    latents = posterior(kind).mode()
    assert latents.shape == (2, 8 // factor, 12 // factor, channels)
    assert module.image_channels == 3
    decoded = applied(kind, "decode", latents)
    assert decoded.shape == IMAGES.shape
    assert latents.dtype == decoded.dtype == jnp.float32


@every_kind
def test_samples_follow_their_key(kind):
    draw = posterior(kind).sample
    one, same, other = (draw(jax.random.key(seed)) for seed in (0, 0, 1))
    assert one.shape == posterior(kind).mode().shape
    np.testing.assert_array_equal(one, same)
    certain = np.array_equal(one, posterior(kind).mode())
    assert certain == np.array_equal(one, other)


@every_kind
def test_parts_are_all_parameters_and_do_not_overlap(kind):
    row, (_, params) = FIRST_STAGES[kind], made(kind)
    parts = [*row.latent_parts, *row.decoder_parts]
    assert len(set(parts)) == len(parts) and set(parts) == params.keys()


@every_kind
def test_latents_depend_on_their_parts_alone(kind):
    row, (module, params) = FIRST_STAGES[kind], made(kind)
    other = params | {
        name: jax.tree.map(lambda leaf: leaf + 1, params[name])
        for name in row.decoder_parts
    }
    latents = module.apply({"params": other}, IMAGES, method="encode").mode()
    np.testing.assert_array_equal(latents, posterior(kind).mode())


@every_kind
def test_measures_are_numbers_of_each_image(kind):
    measures, (module, params) = FIRST_STAGES[kind].measures, made(kind)
    rows = measures.rows(module, params, posterior(kind))
    assert all(len(values) == len(IMAGES) for values in rows.values())
    means = {name: np.mean(values, axis=0) for name, values in rows.items()}
    numbers = measures.summarize(means | {"psnr": 1.0})
    assert numbers["psnr"] == 1.0 and measures.units.keys() <= numbers.keys()
    for name, value in numbers.items():
        assert np.shape(value) == () and np.isfinite(value), name


@trained_kinds
def test_reconstructing_is_encoding_and_decoding(kind):
    fake, regularised, features = applied(kind, "reconstruct", IMAGES)
    expected = applied(kind, "decode", posterior(kind).mode())
    np.testing.assert_allclose(fake, expected, atol=1e-5)
    regulariser = FIRST_STAGES[kind].regulariser
    value, metrics = regulariser.loss(regularised, LossOptions())
    assert np.shape(value) == () and np.isfinite(value)
    assert all(np.shape(metric) == () for metric in metrics.values())
    assert regulariser.reduction in REDUCTIONS


@trained_kinds
def test_the_last_layer_gives_the_reconstructions(kind):
    module, params = made(kind)
    fake, _, features = applied(kind, "reconstruct", IMAGES)
    function, kernel = FIRST_STAGES[kind].last_layer(module, params, features)
    np.testing.assert_allclose(function(kernel), fake, atol=1e-5)
    assert np.abs(function(2 * kernel) - fake).max() > 1e-3


@trained_kinds
def test_a_codebook_lies_where_its_row_says(kind):
    codebook, (module, params) = FIRST_STAGES[kind].codebook, made(kind)
    if codebook is None:
        return
    codes = functools.reduce(lambda tree, name: tree[name], codebook.path, params)
    assert codes.shape == codebook.shape(module)
    assert codebook.path[0] in FIRST_STAGES[kind].latent_parts
    _, quantized, _ = applied(kind, "reconstruct", IMAGES)
    assert quantized.counts.shape == codes.shape[:1]
    assert quantized.sums.shape == codes.shape
    assert quantized.counts.sum() == quantized.encoded[..., 0].size
