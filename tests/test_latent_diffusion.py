"""The whole model: encode, condition, loss, denoise, generate."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ldm_jax import generate, latent_diffusion
from ldm_jax.conditioners import make_conditioner
from ldm_jax.diffusion.grids import make_points
from ldm_jax.diffusion.latent_statistics import LatentStatistics
from ldm_jax.diffusion.objective import Objective
from ldm_jax.diffusion.samplers import SAMPLERS
from ldm_jax.diffusion.sampling_method import SamplingMethod
from ldm_jax.diffusion.schedule import PREDICTION_TYPES, make_schedule
from ldm_jax.diffusion.solve import normal
from ldm_jax.generate import SampleOptions, invert_latents
from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.models.autoencoder import KLAutoencoder
from ldm_jax.models.unet import UNet
from tests.common import options_and_given, random_variables, random_weights

BATCH, SIZE = 4, 16
SCHEDULE = make_schedule()
AUTOENCODER = KLAutoencoder(
    channels=32,
    channel_mult=(1, 1),
    num_res_blocks=1,
    z_channels=2,
    embed_dim=2,
    mid_attention=False,
)
# One level, as compiling it is most of what these tests do.
UNET = UNet(
    out_channels=2,
    channels=32,
    channel_mult=(1,),
    num_res_blocks=1,
    num_heads=2,
    transformer_depth=1,
    norm_groups=16,
)
CONTEXT = {"kind": "class_label", "num_classes": 3, "features": 8}
VECTOR = {"kind": "class_label", "num_classes": 3, "features": 128, "slot": "vector"}


def make_model(entry=CONTEXT, **changes):
    conditioner = make_conditioner({"label": entry} if entry else None)
    model = LatentDiffusion(UNET, conditioner, SCHEDULE, AUTOENCODER)
    return dataclasses.replace(model, **changes)


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


@pytest.fixture(scope="module")
def batch():
    images = np.random.RandomState(0).randint(0, 256, (BATCH, SIZE, SIZE, 3), np.uint8)
    return {"image": images, "label": np.arange(BATCH, dtype=np.int32) % 3}


@pytest.fixture(scope="module")
def frozen():
    images = jnp.zeros((1, SIZE, SIZE, 3))
    variables = random_variables(AUTOENCODER, images)
    return {
        "first_stage": variables["params"],
        "statistics": LatentStatistics(scale=0.7).arrays(),
    }


@functools.cache
def draw_params(model):
    batch = {"image": np.zeros((1, SIZE, SIZE, 3)), "label": np.zeros(1, int)}
    return random_weights(latent_diffusion.init(model, None, batch))


def test_init_makes_what_is_trained(batch):
    init = functools.partial(latent_diffusion.init, rng=jax.random.key(0), batch=batch)
    assert set(jax.eval_shape(lambda: init(make_model()))) == {
        "backbone",
        "conditioner",
    }
    params = jax.eval_shape(lambda: init(make_model(None)))
    assert params["conditioner"] == {}
    params = jax.eval_shape(
        lambda: init(make_model(objective=Objective(learn_logvar=True)))
    )
    assert params["logvar"].shape == (1000,)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


def test_shape_of_latents():
    assert latent_diffusion.shape_of_latents(make_model(), (16, 24)) == (8, 12, 2)
    with pytest.raises(ValueError, match="16x17 .* factor 2"):
        latent_diffusion.shape_of_latents(make_model(), (16, 17))


# The first stage.


encode = jax.jit(latent_diffusion.encode, static_argnums=0)
decode = jax.jit(latent_diffusion.decode, static_argnums=0)


def test_scaling_factor_scales_latents_and_cancels(batch, frozen):
    model, images = make_model(), batch["image"]
    unscaled = frozen | {"statistics": LatentStatistics().arrays()}
    latents = encode(model, frozen, images)
    assert latents.shape == (BATCH, 8, 8, 2) and latents.dtype == jnp.float32
    expected = encode(model, unscaled, images)
    np.testing.assert_allclose(latents, 0.7 * expected, rtol=1e-6)
    np.testing.assert_allclose(
        decode(model, frozen, latents),
        decode(model, unscaled, expected),
        atol=1e-5,
    )


def test_statistics_normalise_each_channel_and_cancel(batch, frozen):
    """The latents of each channel get zero mean and unit variance."""
    model, images = make_model(), batch["image"]
    plain = frozen | {"statistics": LatentStatistics().arrays()}
    expected = encode(model, plain, images)
    mean, std = (f(expected, axis=(0, 1, 2)) for f in (np.mean, np.std))
    statistics = LatentStatistics.of(tuple(mean), tuple(std)).arrays()
    assert statistics.shift.shape == statistics.scale.shape == (2,)
    per_channel = frozen | {"statistics": statistics}
    latents = encode(model, per_channel, images)
    np.testing.assert_allclose(latents.mean(axis=(0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(latents.std(axis=(0, 1, 2)), 1, rtol=1e-5)
    np.testing.assert_allclose(
        decode(model, per_channel, latents), decode(model, plain, expected), atol=1e-5
    )


def test_a_scaling_factor_multiplies_to_the_bit(batch, frozen):
    """As it did before there were statistics of channels."""
    model, images, factor = make_model(), batch["image"], np.float32(0.7)
    plain = frozen | {"statistics": LatentStatistics().arrays()}
    latents = encode(model, frozen, images)
    np.testing.assert_array_equal(latents, encode(model, plain, images) * factor)
    np.testing.assert_array_equal(
        decode(model, frozen, latents), decode(model, plain, latents / factor)
    )
    same = frozen | {"statistics": LatentStatistics((0.0, 0.0), (0.7, 0.7)).arrays()}
    np.testing.assert_array_equal(encode(model, same, images), latents)


def test_latents_of_a_batch_are_those_of_its_images(batch, frozen):
    latents = latent_diffusion.latents_of(make_model(), frozen, batch, keys(1)[0])
    expected = latent_diffusion.encode(make_model(), frozen, batch["image"], keys(1)[0])
    np.testing.assert_array_equal(latents, expected)


def test_encode_takes_bytes_and_floats(batch, frozen):
    images = batch["image"]
    from_bytes = encode(make_model(), frozen, images)
    floats = jnp.asarray(images / 127.5 - 1, jnp.float32)
    from_floats = encode(make_model(), frozen, floats)
    np.testing.assert_allclose(from_bytes, from_floats, atol=1e-5)


def test_encode_draws_from_the_posterior_when_given_a_key(batch, frozen):
    arguments = make_model(), frozen, batch["image"]
    mode = encode(*arguments)
    first, second = (encode(*arguments, rng) for rng in keys(2))
    assert np.abs(first - second).max() > 0.01
    assert np.abs(first - mode).max() > 0.01
    np.testing.assert_array_equal(first, encode(*arguments, keys(2)[0]))


# Training.


@functools.cache
def loss_of(model, train=True):
    """Compiled (params, frozen, batch, rng) -> (loss, metrics); equal models share."""
    return jax.jit(functools.partial(latent_diffusion.loss, model, train=train))


@pytest.mark.parametrize("entry", [CONTEXT, VECTOR], ids=["context", "vector"])
def test_gradient_reaches_what_is_trained_and_nothing_else(batch, frozen, entry):
    model = make_model(entry, objective=Objective(learn_logvar=True))

    @jax.jit
    def gradients(params, frozen):
        def loss(params, frozen):
            rng = jax.random.key(0)
            return latent_diffusion.loss(model, params, frozen, batch, rng)[0]

        return jax.grad(loss, argnums=(0, 1))(params, frozen)

    ours, theirs = gradients(draw_params(model), frozen)
    still = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in jax.tree_util.tree_leaves_with_path(ours)
        if not np.any(leaf)
    }
    # A class is one token, which has all attention whatever it is compared with.
    block = "backbone/middle_attention/block_0"
    compared = ["norm_cross/bias", "norm_cross/scale"]
    compared += [f"cross_attention/{name}/kernel" for name in ("key", "query")]
    expected = {f"{block}/{name}" for name in compared} if entry == CONTEXT else set()
    assert still == expected and set(ours) == {"backbone", "conditioner", "logvar"}
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(theirs))


def test_loss_is_a_function_of_its_key(batch, frozen):
    model = make_model()
    loss, arguments = loss_of(model), (draw_params(model), frozen, batch)
    first, metrics = loss(*arguments, jax.random.key(0))
    compilations = loss._cache_size()
    assert first == loss(*arguments, jax.random.key(0))[0]
    assert first != loss(*arguments, jax.random.key(1))[0]
    assert loss._cache_size() == compilations
    assert set(metrics) == {"loss", "loss_simple", "loss_vlb", "loss_vs_zeros"}
    assert first.dtype == jnp.float32 and metrics["loss"] == first


@pytest.mark.parametrize("loss_type, plateau", [("l1", 0.798), ("l2", 1.0)])
def test_untrained_network_sits_on_the_plateau(batch, frozen, loss_type, plateau):
    model = make_model(objective=Objective(loss_type=loss_type))
    params = jax.tree.map(np.zeros_like, draw_params(model))
    loss, _ = loss_of(model)(params, frozen, batch, jax.random.key(0))
    np.testing.assert_allclose(loss, plateau, rtol=0.1)


def test_dropped_conditions_are_null_conditions(batch, frozen):
    never = make_model()
    always = make_model(CONTEXT | {"dropout": 1 - 1e-9})
    null = batch | never.conditioner.null_inputs(batch)

    def loss(model, batch, train=True):
        arguments = draw_params(never), frozen, batch, jax.random.key(0)
        return loss_of(model, train)(*arguments)[0]

    given = loss(never, batch)
    assert loss(always, batch) == loss(never, null) != given
    # Evaluation tells the network what it is looking at.
    np.testing.assert_allclose(loss(always, batch, train=False), given, rtol=1e-6)


def test_padding_does_not_count(batch, frozen):
    model = make_model()
    padded = batch | {"image": batch["image"].copy()}
    padded["image"][3] = 0

    def loss(batch, weights):
        arguments = draw_params(model), frozen, batch, jax.random.key(0)
        return loss_of(model)(*arguments, weights=jnp.array(weights))[0]

    part = loss(batch, [1.0, 1.0, 1.0, 0.0])
    np.testing.assert_allclose(part, loss(padded, [1.0, 1.0, 1.0, 0.0]), rtol=1e-6)
    assert part != loss(batch, [1.0, 1.0, 1.0, 1.0])


def test_loss_does_not_depend_on_the_devices(batch, frozen):
    model = make_model()
    batch = {key: np.concatenate([values] * 2) for key, values in batch.items()}
    mesh = Mesh(np.array(jax.devices()), ("data",))
    spread = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
    together, apart = (
        loss_of(model)(draw_params(model), frozen, rows, jax.random.key(0))[0]
        for rows in (batch, spread)
    )
    np.testing.assert_allclose(apart, together, rtol=1e-5)


# Sampling.


def sample(model, params, inputs, rngs, gradient_guidance=None, **options):
    """`sample_latents` of 8 x 8 latents in few steps, with the options by name."""
    options, given = options_and_given(**{"size": (16, 16), "num_steps": 4} | options)
    return generate.sample_latents(
        model, params, inputs, rngs, options, given, gradient_guidance
    )


def draw(model, rngs, inputs, **options):
    run = functools.partial(sample, model, **options)
    return jax.jit(lambda params, inputs, rngs: run(params, inputs, rngs))(
        draw_params(model), inputs, rngs
    )


def test_generate_makes_images_of_its_keys(batch, frozen):
    model = make_model()
    guidance = generate.GuidanceOptions(scale=2.5)
    options = SampleOptions(num_steps=3, size=(SIZE, SIZE), guidance=guidance)
    draw = jax.jit(functools.partial(generate.sample_images, model, options=options))
    inputs = {"label": batch["label"]}
    images = draw(draw_params(model), frozen, inputs, keys(BATCH))
    assert images.shape == (BATCH, SIZE, SIZE, 3) and images.dtype == jnp.float32
    other = draw(draw_params(model), frozen, inputs, keys(BATCH, seed=1))
    assert draw._cache_size() == 1 and np.abs(images - other).max() > 1e-2
    inputs = {"label": batch["label"][2:3]}
    alone = draw(draw_params(model), frozen, inputs, keys(BATCH)[2:3])
    np.testing.assert_allclose(alone[0], images[2], atol=1e-4)


class Told(nn.Module):
    """A network without weights that moves latents by what it is told."""

    def __call__(self, latents, timesteps, context=None, concat=None, *_, train=False):
        told = concat if context is None else context.mean(axis=1)[:, None, None]
        return jnp.tanh(latents + 2 * told.mean(axis=-1, keepdims=True))


def told_model(**entries):
    conditioner = make_conditioner(entries)
    return make_model(None, backbone=Told(), conditioner=conditioner)


def init_params(model, batch):
    return latent_diffusion.init(model, jax.random.key(0), batch)


@pytest.mark.parametrize(
    "options, evaluations",
    [
        ({"guidance_scale": 1.0}, {1}),
        ({"guidance_scale": {"label": 1, "style": 1.0}}, {1}),
        ({"guidance_scale": 4.0}, {2}),
        ({"guidance_scale": {"label": 4.0}}, {2}),
        ({"guidance_scale": {"label": 4.0, "style": 2.0}}, {3}),
        ({"guidance_scale": 4.0, "guidance_interval": (0.1, 0.8)}, {1, 2}),
        ({"guidance_scale": 4.0, "guidance_rescale": 0.7}, {2}),
    ],
)
def test_guidance_costs_what_it_must(batch, options, evaluations):
    model, sizes = told_model(label=CONTEXT, style=CONTEXT), set()
    inputs = {"label": batch["label"], "style": batch["label"]}

    def count(next_method, args, kwargs, context):
        if isinstance(context.module, Told):
            sizes.add(len(args[0]))
        return next_method(*args, **kwargs)

    def draw():
        params = init_params(model, batch | inputs)
        sizes.clear()
        return sample(model, params, inputs, keys(BATCH), **options)

    with nn.intercept_methods(count):
        jax.eval_shape(draw)
    assert sizes == {BATCH * n for n in evaluations}


def test_guidance_options_reach_the_sample(batch):
    model = told_model(label=CONTEXT)

    @jax.jit
    def draw(scale):
        params = init_params(model, batch)

        def draw(scale, **more):
            inputs, rngs = {"label": batch["label"]}, keys(BATCH)
            more = {"guidance_scale": scale, "num_steps": 2} | more
            return sample(model, params, inputs, rngs, **more)

        def nothing(predict):
            return lambda latents, point: (0 * latents, 0 * latents)

        return {
            "plain": draw(1),
            "traced": draw(scale),
            "four": draw(4.0),
            "dict": draw({"label": 4.0}),
            # Of two steps, the last is at timestep 1.
            "outside": draw(4.0, guidance_interval=(0.0, 0.0)),
            "rescaled": draw(4.0, guidance_rescale=0.7),
            "nothing to push away": draw(4.0, negative={"label": batch["label"]}),
            "guided": draw(4.0, gradient_guidance=nothing),
        }

    found = draw(1.0)
    plain, four = found["plain"], found["four"]
    for name in ("traced", "outside", "nothing to push away"):
        np.testing.assert_allclose(found[name], plain, atol=1e-5)
    np.testing.assert_allclose(found["dict"], four, atol=1e-5)
    for other in (plain, found["rescaled"]):
        assert np.abs(other - four).max() > 1e-2
    assert not found["guided"].any()


def test_negative_inputs_are_encoded_like_inputs(batch, frozen):
    """Pushing away from what is given is pushing nowhere."""
    model = told_model(style={"kind": "encoded"})

    @jax.jit
    def draw(style):
        params = init_params(model, batch | {"style": style})
        arguments = (model, params, frozen, {"style": style}, keys(BATCH))
        return [
            generate.sample_images(
                *arguments, *options_and_given(size=(SIZE, SIZE), **more)
            )
            for more in ({}, {"guidance_scale": 5.0, "negative": {"style": style}})
        ]

    plain, pushed = draw(batch["image"])
    np.testing.assert_allclose(pushed, plain, atol=1e-4)


class Oracle(nn.Module):
    """The exact denoiser of latents that are independently N(mean, std^2)."""

    prediction_type: str
    mean: float = 0.8
    std: float = 0.5

    @nn.compact
    def __call__(self, latents, timesteps, *slots, train=False):
        point = SCHEDULE.at(timesteps[:, None, None, None])
        variance = (point.alpha * self.std) ** 2 + point.sigma**2
        noise = point.sigma * (latents - point.alpha * self.mean) / variance
        x0 = (latents - point.sigma * noise) / point.alpha
        row = PREDICTION_TYPES[self.prediction_type]
        return row.target(x0, noise, point.alpha, point.sigma)


# Every sampler with one type, every type with one sampler.
@pytest.mark.parametrize(
    "prediction_type, sampler",
    [("v", name) for name in SAMPLERS] + [(kind, "ddim") for kind in PREDICTION_TYPES],
)
def test_exact_denoiser_gives_the_data_distribution(prediction_type, sampler):
    model = make_model(
        None, backbone=Oracle(prediction_type), objective=Objective(prediction_type)
    )
    options = {"sampler": sampler, "num_steps": 100, "size": (64, 64)}
    latents = np.asarray(draw(model, keys(8), {}, **options))
    np.testing.assert_allclose(latents.mean(), 0.8, atol=0.03)
    # A hundred ancestral steps come out a little narrow; the error is of first order.
    np.testing.assert_allclose(latents.std(), 0.5, atol=0.05)


def test_strength_decides_how_much_of_an_image_is_left(batch, frozen):
    model, images = make_model(None, backbone=Oracle("noise")), batch["image"]
    known = encode(model, frozen, images)
    distances = []
    for strength in (0.05, 0.4, 1.0):
        options = {"known": known, "num_steps": 20, "strength": strength}
        distances.append(np.abs(draw(model, keys(BATCH), {}, **options) - known).mean())
    assert distances[0] < 0.1 < distances[1] < distances[2]


def test_strength_one_starts_from_noise_alone():
    model = make_model(None, backbone=Oracle("noise"))
    from_noise = draw(model, keys(2), {})
    known = jnp.full((2, 8, 8, 2), 100.0)
    np.testing.assert_array_equal(draw(model, keys(2), {}, known=known), from_noise)


def test_strength_zero_gives_back_the_image_as_it_is():
    model, known = (
        make_model(None, backbone=Oracle("noise")),
        normal(keys(2), (8, 8, 2)),
    )
    np.testing.assert_array_equal(
        draw(model, keys(2), {}, known=known, strength=0), known
    )


def test_every_hundredth_of_strength_is_a_step():
    taken = [generate._first_step(k / 100, 100) for k in range(101)]
    assert taken == list(range(100, -1, -1))


def test_inverted_latents_are_found_again():
    model = make_model(None, backbone=Oracle("noise"))
    params, grid = draw_params(model), {"num_steps": 50, "spacing": "trailing"}
    options = SampleOptions(**grid)
    known = 0.8 + 0.5 * normal(keys(2), (8, 8, 2))
    noise = jax.jit(
        lambda known: invert_latents(model, params, {}, known, options, iterations=6)
    )(known)
    assert 0.8 < noise.std() < 1.25
    again = draw(model, keys(2), {}, noise=noise, **grid)
    np.testing.assert_allclose(again, known, atol=0.02)


def test_strength_starts_at_the_level_of_the_first_step_that_runs():
    model, known = (
        make_model(None, backbone=Oracle("noise")),
        jnp.full((2, 8, 8, 2), 3.0),
    )

    def stay(predict, latents, state, now, next, noise):
        return latents, state

    still = SamplingMethod(init=lambda latents: (), step=stay, order=0)
    latents = draw(
        model, keys(2), {}, known=known, sampler=still, strength=0.3, num_steps=10
    )
    points = make_points(SCHEDULE, 10)
    noise_rngs = jax.vmap(jax.random.split)(keys(2))[:, 0]
    expected = points.alpha[7] * known + points.sigma[7] * normal(noise_rngs, (8, 8, 2))
    np.testing.assert_allclose(latents, expected, rtol=1e-5)


def test_masked_part_is_kept(batch, frozen):
    model = make_model(None, backbone=Oracle("noise", mean=0.0, std=10.0))
    known = encode(model, frozen, batch["image"])
    mask = np.zeros((1, 8, 8, 1), np.float32)
    mask[:, :, :4] = 1
    latents = draw(model, keys(BATCH), {}, known=known, mask=mask, num_steps=20)
    error = np.abs(latents - known).mean(axis=(0, 1, 3))
    assert error[:4].max() < 0.2 < 1.0 < error[4:].min()


def test_generate_starts_from_images(batch, frozen):
    model = make_model(None, backbone=Oracle("noise", mean=0.0, std=10.0))
    images = generate.sample_images(
        model,
        draw_params(model),
        frozen,
        {},
        keys(BATCH),
        SampleOptions(strength=0.05, num_steps=20),
        generate.Given(known=batch["image"]),
    )
    latents = encode(model, frozen, batch["image"])
    kept = decode(model, frozen, latents)
    assert np.abs(images - kept).mean() < 0.2 * np.abs(kept).mean() + 0.05


def test_latents_stay_float32_whatever_the_network_computes_in(batch):
    model = make_model(backbone=UNET.clone(dtype=jnp.bfloat16))
    params = draw_params(make_model())
    latents = jax.eval_shape(
        lambda: sample(model, params, batch, keys(BATCH), guidance_scale=2.0)
    )
    assert latents.dtype == jnp.float32


@pytest.mark.parametrize(
    "options, message",
    [
        ({"guidance_scale": 2.0}, "needs a model with conditions"),
        (
            {"guidance_scale": {"label": 2.0}},
            "not a condition of this model: it has none",
        ),
        ({"guidance_interval": (0.9, 0.1)}, "0 <= low <= high <= 1"),
        ({"guidance_rescale": 1.5}, "guidance_rescale must be in"),
        ({"strength": 0.5}, "need images"),
        ({"mask": 1.0}, "need images"),
        ({"known": 0.0, "strength": 0.1}, "must leave 1 to 4.*give 0.25 to 1, or 0"),
        ({"known": 0.0, "strength": 1.5}, "must leave 1 to 4"),
        ({"known": 0.0, "strength": -0.5}, "must leave 1 to 4"),
        ({"sampler": "dpm"}, "choose one of ddpm, ddim, plms"),
        ({"sampler": "plms", "eta": 1.0}, "no option 'eta'"),
        ({"spacing": "linear"}, "choose one of uniform"),
        ({"num_steps": 2000}, "1 to the schedule's 1000"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message) as error:
        params = {"backbone": {}, "conditioner": {}}
        model = make_model(None)
        sample(model, params, {}, keys(1), **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "option", ["prediction_type", "loss_type", "timestep_sampling"]
)
def test_unknown_choice_is_refused(option):
    with pytest.raises(ValueError, match=f"unknown {option} 'mse': choose one of"):
        Objective(**{option: "mse"})


@pytest.mark.parametrize(
    "options, message",
    [
        ({"min_snr_gamma": 0.0}, "min_snr_gamma must be more than 0"),
        ({"offset_noise": -0.1}, "offset_noise must be 0 or more"),
        ({"logit_std": -1.0}, "logit_std must be 0 or more"),
    ],
)
def test_wrong_training_choice_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Objective(**options)


def test_objective_must_go_with_the_schedule():
    with pytest.raises(ValueError, match="choose one of x0, v, velocity"):
        make_model(schedule=make_schedule(zero_terminal_snr=True))
