"""Tiles: the whole is what a local network gives, and no seam where it is not local."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax import generate, latent_diffusion, tiling
from ldm_jax.conditioners import make_conditioner
from ldm_jax.diffusion.latent_statistics import LatentStatistics
from ldm_jax.diffusion.schedule import make_schedule
from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.models.autoencoder import KLAutoencoder
from ldm_jax.models.first_stages import FIRST_STAGES
from ldm_jax.models.unet import UNet
from ldm_jax.tiling.cuts import cut_axis, spans, weights
from tests.common import assert_close, random_variables


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
    params = random_variables(model, images[:, :32, :32])

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
    model = FIRST_STAGES[kind].module(
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


# Within a compiled program.


def _apart(latents, timesteps, context=None, concat=None, vector=None):
    """A U-Net that looks one cell far and heeds every condition of every example."""
    edge = jnp.pad(latents, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = latents.shape[1:3]
    near = sum(
        (1 + i + 3 * j) * edge[:, i : i + height, j : j + width]
        for i in range(3)
        for j in range(3)
    )
    each = timesteps[:, None] + context.sum(1) + vector
    return jnp.tanh(near / 10) * concat + each[:, None, None]


def _arguments(height, width, seed=0):
    shapes = [(3, 4, 2), (3, height, width, 2), (3, 2)]
    keys = jax.random.split(jax.random.key(seed), 4)
    latents = jax.random.normal(keys[0], (3, height, width, 2))
    rest = map(jax.random.normal, keys[1:], shapes)
    return latents, jnp.arange(3), *rest


@pytest.mark.parametrize("height, width", [(40, 16), (13, 50), (9, 8), (60, 4)])
def test_a_local_unet_gives_the_untiled_result_at_any_size(height, width):
    arguments = _arguments(height, width)
    tiled = jax.jit(tiling.tile_backbone(_apart, 16, multiple=4))
    assert_close(tiled(*arguments), _apart(*arguments), 1e-6)


def test_a_map_of_one_cell_is_a_map_of_equal_ones():
    latents, times, context, concat, vector = _arguments(24, 24)
    one = concat[:, :1, :1]
    tiled = tiling.tile_backbone(_apart, 16)(latents, times, context, one, vector)
    assert_close(tiled, _apart(latents, times, context, one, vector), 1e-6)


def test_latents_as_large_as_a_tile_are_not_cut():
    arguments = _arguments(16, 12)
    seen = []

    def unet(*given):
        seen.append([x.shape for x in given])
        return _apart(*given)

    result = tiling.tile_backbone(unet, 16, multiple=4)(*arguments)
    np.testing.assert_array_equal(result, _apart(*arguments))
    assert seen == [[x.shape for x in arguments]]


@pytest.mark.parametrize("at_once, per_call", [(1, 1), (3, 3), (100, 8)])
def test_tiles_come_a_few_at_a_time(at_once, per_call):
    arguments = _arguments(40, 24)  # 4 x 2 tiles
    seen = set()

    def unet(latents, *rest):
        seen.add(latents.shape)
        return _apart(latents, *rest)

    result = tiling.tile_backbone(unet, 16, at_once=at_once)(*arguments)
    assert_close(result, _apart(*arguments), 1e-6)
    assert seen == {(3 * per_call, 16, 16, 2)}


@pytest.mark.parametrize("length", [17, 24, 31, 100])
@pytest.mark.parametrize("overlap", [0, 3, 8])
def test_weights_sum_to_one(length, overlap):
    cut = cut_axis(length, 16, overlap)
    total = np.zeros(3 * length)
    for span, row in zip(spans(cut, 3), weights(cut, 3), strict=True):
        assert (row >= 0).all()
        total[span] += row
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_where_tiles_disagree_one_fades_into_the_next():
    x = jax.random.normal(jax.random.key(0), (1, 16, 75, 1))

    def level(tiles):
        mean = tiles.mean((1, 2), keepdims=True)
        return jnp.broadcast_to(mean, tiles.shape)

    result = tiling.map_tiles(level, x, 16, 8)
    levels = [float(x[:, :, i : i + 16].mean()) for i in (*range(0, 59, 8), 59)]
    most = np.abs(np.diff(levels)).max()
    assert np.abs(np.diff(result, axis=2)).max() <= most / 4 * 1.001
    assert np.ptp(result) > most / 2


def test_a_first_stage_in_a_program_gives_what_it_gives_on_the_whole(local):
    images = _images(72, 150, batch=2)
    encode, decode = tiling.tile_first_stage(*local, 2, tile=64, overlap=32)
    latents = jax.jit(encode)(images)
    assert_close(latents, local[0](images), 1e-5)
    assert_close(jax.jit(decode)(latents), local[1](latents), 1e-5)
    with pytest.raises(ValueError, match="30 x 31 pixels .* multiples of .* factor 2"):
        encode(np.zeros((1, 30, 31, 3)))


@pytest.mark.parametrize("tile, use", [(12, 16), (0, 8), (-3, 8)])
def test_a_tile_that_the_backbone_cannot_take(tile, use):
    with pytest.raises(ValueError, match=f"multiple of 8; use tile={use}$"):
        tiling.tile_backbone(_apart, tile, multiple=8)


def test_guided_pictures_larger_than_the_unets_size():
    unet = UNet(
        out_channels=2, channels=4, channel_mult=(1, 1), num_res_blocks=1, num_heads=1,
        norm_groups=2,
    )  # fmt: skip
    first_stage = KLAutoencoder(
        channels=4, channel_mult=(1, 1), num_res_blocks=1, z_channels=2, embed_dim=2,
        norm_groups=2, mid_attention=False,
    )  # fmt: skip
    label = dict(kind="class_label", num_classes=3, features=16, slot="vector")
    conditioner = make_conditioner(
        {"label": label, "map": dict(kind="raw", slot="concat")}
    )
    model = LatentDiffusion(unet, conditioner, make_schedule(), first_stage)
    random = np.random.RandomState(0)

    def inputs(height):
        images = random.rand(2, 2 * height, 12, 3).astype(np.float32)
        maps = random.rand(2, height, 6, 2).astype(np.float32)
        return {"image": images, "map": maps, "label": np.arange(2)}

    def init(batch):
        rng = jax.random.key(0)
        params = latent_diffusion.init(model, rng, batch)
        return params, first_stage.init(rng, batch["image"])["params"]

    params, first = jax.tree.map(
        lambda leaf: 0.3 * random.randn(*leaf.shape).astype(np.float32),
        jax.eval_shape(init, inputs(4)),
    )

    def draw_images(batch, rngs, **options):
        return generate.sample_images(
            model,
            params,
            {"first_stage": first, "statistics": LatentStatistics()},
            batch,
            rngs,
            generate.SampleOptions(
                num_steps=2,
                strength=0.5,
                guidance=generate.GuidanceOptions(scale=3.0),
                **options,
            ),
            generate.Given(known=batch["image"]),
        )

    # Seven rows do not halve evenly; tiles do.
    batch, rngs = inputs(7), jax.random.split(jax.random.key(1), 2)
    draw = jax.jit(functools.partial(draw_images, tile=8, decode_tile=8))
    images = draw(batch, rngs)
    assert images.shape == batch["image"].shape and np.isfinite(images).all()
    swapped = draw(jax.tree.map(lambda array: array[::-1], batch), rngs[::-1])
    assert_close(swapped[::-1], images, 1e-5)
    assert np.abs(swapped - images).max() > 0.01
