"""Tiles: the whole is what a local network gives, and no seam where it is not local."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax import tiling
from ldm_jax.models.autoencoder import FIRST_STAGES, KLAutoencoder
from tests.common import assert_close


class _Local(nn.Module):
    """Factor 2 and no norms; the reach of both ways is below eight pixels."""

    @nn.compact
    def __call__(self, x, way):
        if way == "encode":
            x = nn.tanh(nn.Conv(6, (3, 3), 2, padding=((0, 1), (0, 1)))(x))
            return nn.Conv(4, (3, 3), padding=1)(x)
        x = nn.tanh(nn.Conv(6, (3, 3), padding=1)(x))
        x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        return nn.Conv(3, (3, 3), padding=1)(x)


@pytest.fixture(scope="module")
def local():
    """Compiled (encode, decode) of a network that looks at its neighbourhood only."""
    model, functions = _Local(), []
    for way, channels in (("encode", 3), ("decode", 4)):
        x = jnp.zeros((1, 8, 8, channels))
        variables = model.init(jax.random.key(channels), x, way)
        functions.append(jax.jit(functools.partial(model.apply, variables, way=way)))
    return functions


def _images(height, width, batch=1):
    rng = np.random.default_rng(0)
    return rng.uniform(-1, 1, (batch, height, width, 3)).astype(np.float32)


@pytest.mark.parametrize(
    "height, width", [(128, 128), (64, 150), (200, 66), (48, 32), (24, 300)]
)
def test_a_local_network_gives_what_it_gives_on_the_whole(local, height, width):
    encode, decode = local
    images = _images(height, width, batch=2)
    sizes = dict(tile=64, overlap=32)
    latents = tiling.encode_tiled(encode, images, 2, **sizes)
    assert latents.dtype == np.float32
    assert_close(latents, encode(images), 1e-5)
    assert_close(
        tiling.decode_tiled(decode, latents, 2, **sizes), decode(latents), 1e-5
    )


def test_without_context_the_padding_shows(local):
    # What the test above would miss if tiles were merely put side by side.
    images = _images(128, 128)
    latents = tiling.encode_tiled(local[0], images, 2, tile=64, overlap=0)
    assert np.abs(latents - local[0](images)).max() > 1e-2


def test_all_tiles_have_one_shape_and_the_last_ends_with_the_image():
    seen = []

    def note(part):
        seen.append(part.copy())
        return part

    images = np.arange(70 * 90, dtype=np.float32).reshape(1, 70, 90, 1)
    result = tiling.decode_tiled(note, images, 1, tile=32, overlap=8)
    assert_close(result, images, 1e-6)
    assert {part.shape for part in seen} == {(1, 32, 32, 1)}
    assert len(seen) == 3 * 4
    np.testing.assert_array_equal(seen[-1], images[:, -32:, -32:])


def test_an_image_smaller_than_a_tile_is_not_cut():
    calls = []
    images = _images(16, 24)
    result = tiling.decode_tiled(
        lambda part: calls.append(part.shape) or part, images, 1, tile=32, overlap=16
    )
    np.testing.assert_array_equal(result, images)
    assert calls == [images.shape]


def test_a_random_autoencoder_leaves_no_seam():
    model = KLAutoencoder(
        channels=8, channel_mult=(1, 2), num_res_blocks=1, z_channels=3, embed_dim=3,
        norm_groups=4,
    )  # fmt: skip
    # A bright corner, so that statistics of tiles differ from those of the whole.
    images = 0.3 * _images(96, 96)
    images[:, :40, :40] += 0.7
    params = model.init(jax.random.key(1), images[:, :32, :32])

    @jax.jit
    def encode(part):
        return model.apply(params, part, method="encode").mode()

    @jax.jit
    def decode(part):
        return model.apply(params, part, method="decode")

    latents = tiling.encode_tiled(encode, images, 2, tile=48, overlap=24)
    whole = np.asarray(decode(latents))
    for overlap, smooth in ((24, True), (0, False)):
        tiled = tiling.decode_tiled(decode, latents, 2, tile=48, overlap=overlap)
        error = tiled - whole
        assert np.abs(error).max() > 1e-3  # The norms do see another image.
        steps = np.abs(np.diff(error, axis=2)).mean(axis=(0, 1, 3))
        at_edges = steps[[24 + 5, 47, 48 + 5, 71]] if smooth else steps[[47]]
        assert (at_edges.max() < 2 * np.median(steps)) == smooth


@pytest.mark.parametrize("kind", ["kl", "vq"])
@pytest.mark.parametrize("channels, size", [(1, (24, 40)), (4, (8, 104)), (7, (8, 8))])
def test_images_of_any_channels_and_any_size_that_the_factor_divides(
    kind, channels, size
):
    model = FIRST_STAGES[kind](
        **dict(channels=8, channel_mult=(1, 1, 1, 1), num_res_blocks=1, norm_groups=4),
        image_channels=channels,
        z_channels=3,
        embed_dim=5,
    )

    def there_and_back(images):
        variables = model.init(jax.random.key(0), images)
        latents = model.apply(variables, images, method="encode").mode()
        return latents, model.apply(variables, latents, method="decode")

    images = jax.ShapeDtypeStruct((2, *size, channels), jnp.float32)
    latents, decoded = jax.eval_shape(there_and_back, images)
    assert latents.shape == (2, size[0] // 8, size[1] // 8, 5)
    assert decoded.shape == images.shape


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(tile=50), "use tile=52"),
        (dict(overlap=30), "use overlap=32"),
        (dict(tile=64, overlap=48), "from 0 to half of tile=64, which is 32"),
        (dict(tile=0, overlap=0), "from 0 to half"),
    ],
)
def test_wrong_sizes_name_the_fix(options, message):
    with pytest.raises(ValueError, match=message):
        tiling.decode_tiled(np.asarray, np.zeros((1, 8, 8, 1)), 4, **options)


def test_an_image_that_the_factor_does_not_divide():
    with pytest.raises(ValueError, match="30 x 32 pixels .* multiples of .* factor 4"):
        tiling.encode_tiled(np.asarray, np.zeros((1, 30, 32, 3)), 4)
