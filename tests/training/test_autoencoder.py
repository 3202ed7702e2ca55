"""The first stage's training step: what its config turns on, and wrong configs."""

import dataclasses

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from ldm_jax.errors import ConfigError
from ldm_jax.models.first_stages import FIRST_STAGES
from ldm_jax.models.quantizer import VectorQuantizer
from ldm_jax.training import adversarial
from ldm_jax.training.autoencoder import check, make_stage
from ldm_jax.training.loss_options import LossOptions
from ldm_jax.weights import lpips
from ldm_jax.weights.files import write_weights
from ldm_jax.weights.state_dict import to_state_dict
from tests.common import assert_close, load_case
from tests.runs import assert_same_bits, tiny_config

VQ = dict(
    kind="vq",
    num_codes=16,
    channels=8,
    channel_mult=(1,),
    num_res_blocks=1,
    norm_groups=4,
    mid_attention=False,
    z_channels=4,
    embed_dim=4,
)


@dataclasses.dataclass
class Images:
    """What a stage takes of a run's `Data`."""

    example: dict


BATCH = {
    "image": np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8),
    "mask": np.array([True, True, True, False]),
}
EVERYTHING = dict(
    codebook_ema_decay=0.9,
    restart_threshold=0.95,
    disc_start=1,
    disc_ramp_steps=3,
    r1_weight=1.0,
    lecam_weight=0.1,
    learn_logvar=True,
)


def _stage(first_stage=VQ, train=(), discriminator=(), image_size=16, **loss):
    config = tiny_config("shapes_autoencoder", "", data__image_size=image_size)
    config.first_stage = ConfigDict(first_stage)
    config.loss.disc_start = 100
    config.loss.update(loss)
    config.discriminator.update(dict(discriminator))
    config.train.update(dict(train) | {"learning_rate": 1e-2})
    data = Images({"image": BATCH["image"][:1]})
    check(config)
    return make_stage(config, None, data, {}, "unused")[0]


def _metrics(stage):
    """Names of what a training and an evaluation step log; nothing is computed."""

    def both(rng):
        state = stage.init(rng)
        trained = stage.train_step(state, stage.frozen, BATCH)[1]
        return trained, stage.eval_step(state, stage.frozen, BATCH, rng)

    return jax.eval_shape(both, jax.random.key(0))


def _codes(params):
    return params["autoencoder"]["quantizer"]["embedding"]


@pytest.fixture(scope="module")
def everything():
    """A stage with all options and what its first steps give."""
    norm, train = {"norm": "actnorm"}, {"ema_decay": 0.9, "accumulate_steps": 2}
    stage = _stage(train=train, discriminator=norm, **EVERYTHING)
    states, metrics = [jax.jit(stage.init)(jax.random.key(0))], [None]
    step = jax.jit(stage.train_step)
    for start in (0, 1, 1):  # the second step twice
        state, found = step(states[start], stage.frozen, BATCH)
        states.append(state)
        metrics.append(jax.device_get(found))
    return stage, states, metrics


def test_before_the_start_the_discriminator_learns_nothing(everything):
    _, (start, state, *_), (_, metrics, *_) = everything
    assert metrics["disc_factor"] == metrics["disc_grad_norm"] == 0
    assert_same_bits(state.params["discriminator"], start.params["discriminator"])
    assert state.stats["discriminator"]["norm_1"]["seen"] == 1
    assert state.stats["lecam"] == {"real": 0, "fake": 0}
    assert state.params["logvar"] != 0


def test_after_the_start_all_remedies_work(everything):
    _, (_, _, state, again), (*_, metrics, _) = everything
    np.testing.assert_allclose(metrics["disc_factor"], 1 / 3, rtol=1e-6)
    assert metrics["disc_grad_norm"] > 0 and metrics["lecam_penalty"] > 0
    assert metrics["r1_penalty"] > 0 and state.stats["lecam"]["real"] != 0
    assert all(np.isfinite(value) for value in metrics.values())
    assert_same_bits(state, again)


def test_a_restarted_code_is_so_in_the_moving_average(everything):
    _, (_, state, *_), (_, metrics, *_) = everything
    restarted = np.asarray(state.stats["codebook"]["usage"]) == 1
    assert 0 < metrics["codebook_restarts"] == restarted.sum() < 16
    same = (_codes(state.ema_params) == _codes(state.params)).all(1)
    np.testing.assert_array_equal(same, restarted)


def test_held_out_use_of_codes_is_that_of_the_whole_set(everything):
    stage, (state, *_), _ = everything
    means = jax.jit(stage.eval_step)(state, {}, BATCH, jax.random.key(0))
    assert means["codes"].shape == (16,)
    np.testing.assert_allclose(means["codes"].sum(), 1, rtol=1e-5)
    other = {"codes": np.roll(np.eye(16)[0], 3)}
    summary = stage.summarize({"psnr": 1.0} | other)
    assert summary["psnr"] == 1 and "codes" not in summary
    np.testing.assert_allclose(summary["codebook_usage"], 1 / 16)
    np.testing.assert_allclose(summary["codebook_perplexity"], 1, rtol=1e-5)


def test_a_frozen_codebook_is_neither_averaged_nor_restarted():
    stage = _stage(train={"freeze": ("autoencoder/quantizer",)}, **EVERYTHING)
    trained, _ = _metrics(stage)
    assert "codebook_usage" in trained and "codebook_restarts" not in trained


def test_gumbel_cools_down():
    options = LossOptions(gumbel_temperature=2.0, gumbel_end_temperature=0.5)
    options = dataclasses.replace(options, gumbel_steps=100)
    heat = [float(adversarial.temperature(options, s)) for s in (0, 50, 100, 500)]
    np.testing.assert_allclose(heat, [2, 1.25, 0.5, 0.5], rtol=1e-6)
    trained, _ = _metrics(_stage(VQ | {"quantizer": "gumbel"}))
    assert "divergence_loss" in trained and "codebook_loss" not in trained


def test_both_forms_of_the_codebook_loss():
    latents = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    codes = jax.random.normal(jax.random.key(1), (8, 3))
    model = VectorQuantizer(num_codes=8, features=3)

    def gradients(**changes):
        options = LossOptions(codebook_weight=2.0, codebook_beta=0.5, **changes)

        def loss(codes, latents):
            quantized = model.apply({"params": {"embedding": codes}}, latents)
            return FIRST_STAGES["vq"].regulariser.loss(quantized, options)[0]

        return jax.value_and_grad(loss, argnums=(0, 1))(codes, latents)

    value, legacy = gradients()
    same, corrected = gradients(codebook_legacy=False)
    np.testing.assert_allclose(value, same, rtol=1e-6)
    assert_close(corrected[0], 2 * legacy[0])
    assert_close(corrected[1], 0.5 * legacy[1])
    _, averaged = gradients(codebook_ema_decay=0.99)
    assert np.abs(averaged[0]).max() == 0
    assert_close(averaged[1], legacy[1])


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("lpips") / "lpips.safetensors"
    params = lpips.convert_lpips(load_case("lpips_vgg16").state_dict)
    write_weights(path, to_state_dict(lpips.lpips_rows(), params))
    return str(path)


def test_perceptual_weights_are_frozen_and_used(weights):
    stage = _stage(lpips_weights=weights, perceptual_weight=1.0)
    assert set(stage.frozen) == {"lpips"}
    trained, held_out = _metrics(stage)
    assert "perceptual_loss" in trained and "lpips" in held_out
    trained, held_out = _metrics(_stage(lpips_weights=weights))
    assert "perceptual_loss" not in trained and "lpips" in held_out


KL = {k: v for k, v in VQ.items() if k != "num_codes"} | {"kind": "kl"}


@pytest.mark.parametrize(
    "first_stage, loss, message",
    [
        (KL, {"restart_threshold": 0.1}, "loss.restart_threshold needs a codebook"),
        (
            VQ | {"quantizer": "gumbel"},
            {"codebook_ema_decay": 0.9},
            'loss.codebook_ema_decay sets codes .* first_stage.quantizer="gumbel"',
        ),
        (VQ | {"quantizer": "x"}, {}, "choose nearest, cosine, gumbel"),
        (VQ, {"reduction": "max"}, 'loss.reduction="max" is unknown'),
        (VQ, {"perceptual_weight": 1.0}, "vgg16-397923af.*loss.perceptual_weight=0"),
        (VQ, {"lpips_weights": "/no/file.pth"}, "no file /no/file.pth.*vgg16-397923"),
        ({"kind": "identity"}, {}, "identity.* has nothing to train"),
    ],
)
def test_wrong_configs_name_the_fix(first_stage, loss, message):
    with pytest.raises(ConfigError, match=message) as error:
        _stage(first_stage, **loss)
    assert "\n" not in str(error.value)


def test_small_images_are_refused_with_perceptual_weights(weights):
    with pytest.raises(ConfigError, match="at least 16 pixels, not 8"):
        _stage(lpips_weights=weights, image_size=8)
