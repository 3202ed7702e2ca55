"""First-stage losses: the reference cases, and properties of the adaptive weight."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.models.autoencoder import KLAutoencoder, last_layer
from ldm_jax.models.discriminator import PatchDiscriminator
from ldm_jax.models.first_stages import FIRST_STAGES
from ldm_jax.models.lpips import LPIPS
from ldm_jax.models.posteriors import DiagonalGaussian
from ldm_jax.training import first_stage_losses
from ldm_jax.training.first_stage_losses import Adversary, Likelihood
from ldm_jax.weights.lpips import convert_lpips
from ldm_jax.weights.state_dict import select
from tests.common import assert_close, load_case, nhwc, random_variables
from tests.convert.networks import convert_discriminator


def _conv(x, weight, bias=0.0):
    pad = weight.shape[-1] // 2
    kernel = jnp.transpose(weight, (2, 3, 1, 0))
    return jnp.reshape(bias, (1, 1, 1, -1)) + jax.lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        ((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


# The kind is the discriminator's alone, the regulariser the generator's: two of the
# four have all.
@pytest.mark.parametrize(
    "regulariser, kind",
    [
        ("kl", "hinge"),
        ("vq", "vanilla"),
        pytest.param("kl", "vanilla", marks=pytest.mark.slow),
        pytest.param("vq", "hinge", marks=pytest.mark.slow),
    ],
)
def test_whole_loss_matches_original(regulariser, kind):
    case = load_case(f"first_stage_loss_{regulariser}_{kind}")
    config, arrays, weights = case.meta["config"], case.arrays, case.state_dict
    variables = convert_discriminator(select(weights, "discriminator."))
    images, features = nhwc(arrays["target"]), nhwc(arrays["features"])

    regularisation = config["codebook_loss"]
    if regulariser == "kl":
        moments = (nhwc(arrays[f"posterior_{name}"]) for name in ("mean", "logvar"))
        kl = DiagonalGaussian(*moments).kl().mean()
        regularisation = config["kl_weight"] * kl
    kernel = weights["last_layer.weight"]

    @jax.jit
    def both(step, variables, vgg, logvar):
        def decode(weight):
            return jnp.tanh(_conv(features, weight, weights["last_layer.bias"]))

        def discriminate(x):
            return PatchDiscriminator().apply(
                variables, x, train=True, mutable=["batch_stats"]
            )

        def perceptual(x, y):
            distances = LPIPS().apply({"params": vgg}, x, y)
            return config["perceptual_weight"] * distances

        factor = first_stage_losses.discriminator_factor(step, config["disc_start"])
        fake = decode(kernel)
        generator = first_stage_losses.generator_loss(
            images,
            fake,
            regularisation,
            (decode, kernel),
            Adversary(discriminate, factor, weight=config["disc_weight"]),
            Likelihood(
                reduction=FIRST_STAGES[regulariser].regulariser.reduction,
                perceptual=perceptual,
            ),
            logvar=logvar,
        )
        logits = (discriminate(x)[0] for x in (images, fake))
        return generator, first_stage_losses.discriminator_loss(
            *logits, kind=kind, factor=factor
        )

    vgg = convert_lpips(weights)
    for step in (50, 100):
        (loss, (metrics, _)), (disc_loss, disc_metrics) = both(
            step, variables, vgg, config["logvar"]
        )
        expected = {
            "loss": "total_loss",
            "nll_loss": "nll_loss",
            "reconstruction_loss": "rec_loss",
            "generator_loss": "g_loss",
            "disc_weight": "d_weight",
            "disc_factor": "disc_factor",
        }
        for ours, theirs in expected.items():
            assert_close(metrics[ours], arrays[f"step{step}_opt0__{theirs}"], 2e-4)
        assert_close(loss, arrays[f"step{step}_opt0_loss"], 2e-4)
        assert_close(disc_loss, arrays[f"step{step}_opt1_loss"], 2e-4)
        for name in ("disc_loss", "logits_real", "logits_fake"):
            value = arrays[f"step{step}_opt1__{name}"]
            assert_close(disc_metrics[name], value, 2e-4)


@functools.cache
def _tiny():
    model = KLAutoencoder(
        channels=32,
        channel_mult=(1,),
        num_res_blocks=1,
        z_channels=2,
        embed_dim=2,
        mid_attention=False,
    )
    images = jax.random.uniform(jax.random.key(0), (2, 16, 16, 3), minval=-1)
    params = random_variables(model, images)["params"]
    disc = PatchDiscriminator(channels=8, num_layers=1)
    variables = jax.jit(disc.init)(jax.random.key(2), images)
    return model, params, images, lambda x: (disc.apply(variables, x, train=True), ())


def test_gradient_is_that_of_the_plain_sum():
    """One backward pass gives what three give by the loss's definition."""
    model, params, images, discriminate = _tiny()

    def parts(params):
        output = model.apply(
            {"params": params}, images, jax.random.key(3), method="reconstruct"
        )
        fake, posterior, features = output
        nll, _ = first_stage_losses.reconstruction_loss(images, fake)
        return nll, -jnp.mean(discriminate(fake)[0]), posterior.kl().mean(), output

    def plain(params, weight):
        nll, g, kl, _ = parts(params)
        return nll + weight * g + 0.1 * kl

    def both(kernel):
        layer = params["to_images"] | {"kernel": kernel}
        return jnp.stack(parts(params | {"to_images": layer})[:2])

    gradients = jax.jit(jax.jacrev(both))(params["to_images"]["kernel"])
    norms = jnp.linalg.norm(gradients.reshape(2, -1), axis=1)
    weight = 0.5 * jnp.clip(norms[0] / (norms[1] + 1e-4), 0, 1e4)
    expected = jax.jit(jax.value_and_grad(plain))(params, 0.7 * weight)

    def ours(params):
        *_, kl, (fake, _, features) = parts(params)
        return first_stage_losses.generator_loss(
            images,
            fake,
            0.1 * kl,
            last_layer(model, params, features),
            Adversary(discriminate, factor=0.7),
        )

    (loss, (metrics, _)), gradient = jax.jit(jax.value_and_grad(ours, has_aux=True))(
        params
    )
    assert_close(metrics["disc_weight"], weight, 1e-4)
    assert_close(loss, expected[0], 1e-4)
    leaves = map(jax.tree.leaves, (gradient, expected[1]))
    for a, b in zip(*leaves, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max() + 1e-4, rtol=2e-3)


@pytest.mark.parametrize("reduction", first_stage_losses.REDUCTIONS)
def test_the_log_variance_has_the_gradient_of_the_likelihood(reduction):
    images, fake = jnp.zeros((2, 4, 4, 3)), jnp.full((2, 4, 4, 3), 2.0)
    kernel = jnp.ones(())

    def whole(logvar):
        return first_stage_losses.generator_loss(
            images,
            fake,
            0.0,
            (lambda kernel: fake * kernel, kernel),
            Adversary(lambda x: (x, ()), factor=0.0),
            Likelihood(reduction=reduction),
            logvar=logvar,
        )[0]

    def plain(logvar):
        return first_stage_losses.reconstruction_loss(
            images, fake, logvar=logvar, reduction=reduction
        )[0]

    value, gradient = jax.value_and_grad(whole)(0.3)
    expected = jax.value_and_grad(plain)(0.3)
    np.testing.assert_allclose((value, gradient), expected, rtol=1e-5)
    best = jnp.log(2.0)  # of a Laplace, the log of the mean error
    assert abs(jax.grad(whole)(best)) < 1e-4


def test_r1_of_a_linear_discriminator():
    weights = jax.random.normal(jax.random.key(0), (4, 4, 3))
    images = jax.random.normal(jax.random.key(1), (5, 4, 4, 3))

    def discriminate(x):
        # The same logit for each of two patches.
        return jnp.repeat(jnp.sum(x * weights[None], axis=(1, 2, 3)), 2).reshape(
            5, 2, 1, 1
        )

    penalty = first_stage_losses.r1_penalty(discriminate, images)
    np.testing.assert_allclose(penalty, 0.5 * jnp.sum(weights**2), rtol=1e-5)


def test_lecam_holds_logits_between_the_averages():
    averages = {"real": 0.5, "fake": -0.5}
    penalty = lambda real, fake: first_stage_losses.lecam_penalty(  # noqa: E731
        jnp.full((2, 3), real), jnp.full((2, 3), fake), averages
    )
    assert penalty(-0.5, 0.5) == 0  # undecided: nothing to hold back
    np.testing.assert_allclose(penalty(1.5, -1.5), 2**2 + 2**2)
    metrics = {"logits_real": 1.5, "logits_fake": -1.5}
    moved = first_stage_losses.update_lecam(averages, metrics, True)
    np.testing.assert_allclose(moved["real"], 0.51, rtol=1e-6)
    np.testing.assert_allclose(moved["fake"], -0.51, rtol=1e-6)
    assert first_stage_losses.update_lecam(averages, metrics, False) == averages


def test_weight_is_capped_and_finite_without_adversarial_gradient():
    x = jnp.ones((1, 4, 4, 3))
    layer = (lambda kernel: x * kernel, jnp.ones(()))
    zero, one = jnp.zeros_like(x), jnp.ones_like(x)
    weight = first_stage_losses.adaptive_weight(layer, one, zero)
    assert weight == 1e4
    assert first_stage_losses.adaptive_weight(layer, one, zero, cap=3.0) == 3.0
    assert first_stage_losses.adaptive_weight(layer, zero, zero) == 0.0


def test_factor_starts_at_its_step_and_ramps():
    factor = jax.jit(first_stage_losses.discriminator_factor, static_argnums=(1, 2, 3))
    assert [float(factor(step, 3, 2.0, 0)) for step in range(5)] == [0, 0, 0, 2, 2]
    ramp = [float(factor(step, 2, 1.0, 4)) for step in range(8)]
    np.testing.assert_allclose(ramp, [0, 0, 0.25, 0.5, 0.75, 1, 1, 1])


def test_before_the_start_the_adversary_is_silent():
    model, params, images, discriminate = _tiny()

    def loss(params, factor):
        fake, posterior, features = model.apply(
            {"params": params}, images, method="reconstruct"
        )
        layer = last_layer(model, params, features)
        return first_stage_losses.generator_loss(
            images, fake, 0.0, layer, Adversary(discriminate, factor)
        )[0]

    def plain(params):
        fake, _ = model.apply({"params": params}, images)
        return first_stage_losses.reconstruction_loss(images, fake)[0]

    silent = jax.jit(jax.grad(loss))(params, 0.0)
    for a, b in zip(
        jax.tree.leaves(silent),
        jax.tree.leaves(jax.jit(jax.grad(plain))(params)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", first_stage_losses.DISCRIMINATOR_LOSSES)
def test_discriminator_prefers_the_truth(kind):
    real, fake = jnp.full((2, 3, 3, 1), 5.0), jnp.full((2, 3, 3, 1), -5.0)
    right, metrics = first_stage_losses.discriminator_loss(real, fake, kind=kind)
    wrong, _ = first_stage_losses.discriminator_loss(fake, real, kind=kind)
    assert right < 0.1 < 4 < wrong
    assert metrics["logits_real"] == 5 and metrics["logits_fake"] == -5


def test_reconstruction_kinds():
    images, fake = jnp.zeros((2, 4, 4, 3)), jnp.full((2, 4, 4, 3), 2.0)
    assert first_stage_losses.reconstruction_loss(images, fake)[0] == 2 * 48
    assert first_stage_losses.reconstruction_loss(images, fake, kind="l2")[0] == 4 * 48
    nll, error = first_stage_losses.reconstruction_loss(
        images, fake, perceptual=jnp.array([1.0, 3.0]), reduction="mean", logvar=0.5
    )
    np.testing.assert_allclose(nll, 4 / np.exp(0.5) + 0.5, rtol=1e-6)
    assert error["reconstruction_loss"] == 4
    assert error["pixel_loss"] == error["perceptual_loss"] == 2
