"""Fine-tuning: the start from another run, frozen parts, another decoder."""

import copy
import functools
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from ldm_jax import checkpoint, sampling, sharding
from ldm_jax.checkpoint import TrainState
from ldm_jax.errors import CheckpointError, ConfigError
from ldm_jax.images import to_float
from ldm_jax.models.discriminator import PatchDiscriminator
from ldm_jax.models.first_stages import FIRST_STAGES
from ldm_jax.trained import load_first_stage
from ldm_jax.training.freeze import (
    check_freeze,
    freeze_updates,
    stop_frozen_gradients,
    within,
)
from ldm_jax.training.latents import check_same_first_stage
from ldm_jax.training.start.first_state import start_from
from ldm_jax.training.start.init_from import load_initial, model_notes
from ldm_jax.training.start.same_run import check_config
from tests.runs import assert_same_bits, tiny_config, train
from tests.sampling.common import run

ENCODER = ("autoencoder/encoder", "autoencoder/to_moments")
DECODER_PARTS = FIRST_STAGES["kl"].decoder_parts


def _tune(data_dir, workdir, source, steps=2, **overrides):
    overrides = {
        "train__init_from": str(source),
        "train__num_steps": steps,
        "train__checkpoint_every": 1,
        "train__freeze": ENCODER,
    } | overrides
    train("shapes_autoencoder", data_dir, workdir, **overrides)


@pytest.fixture(scope="module")
def tuned(shapes_dir, first_stage, tmp_path_factory):
    """Workdir of a decoder that was trained alone for two steps."""
    workdir = tmp_path_factory.mktemp("tuned")
    _tune(shapes_dir, workdir, first_stage)
    return workdir


def _split(params):
    """Returns (what makes the latents, what decodes them)."""
    decoder = {name: params[name] for name in DECODER_PARTS}
    return {k: v for k, v in params.items() if k not in decoder}, decoder


def _latents(workdir, average=True):
    first = load_first_stage(workdir, average=average)
    rng = np.random.default_rng(0)
    images = to_float(rng.integers(0, 256, (2, 32, 32, 3), np.uint8))
    posterior = first.module.apply({"params": first.params}, images, method="encode")
    return posterior.mode(), posterior.logvar


def test_a_decoder_alone_leaves_the_latents_bit_for_bit(first_stage, tuned):
    before, old = _split(load_first_stage(first_stage).params)
    for average in (True, False):
        after, new = _split(load_first_stage(tuned, average=average).params)
        assert_same_bits(before, after)
        for name in DECODER_PARTS:
            moved = jax.tree.map(lambda a, b: (a != b).any(), old[name], new[name])
            assert any(jax.tree.leaves(moved)), name
        assert_same_bits(_latents(first_stage), _latents(tuned, average))


def test_a_run_starts_from_the_average_of_the_other(first_stage, tuned):
    meta = checkpoint.load_weights(tuned)[2]
    assert meta["init_from"] == {
        "workdir": str(first_stage),
        "step": 4,
        "weights": "ema_params",
    }
    # The discriminator, of which no average is kept, is taken too.
    _, start, _ = checkpoint.load_weights(first_stage, average=False)
    _, end, _ = checkpoint.load_weights(tuned, average=False)
    gaps = jax.tree.map(
        lambda a, b: np.abs(a - b).max(), start["discriminator"], end["discriminator"]
    )
    assert 0 < max(jax.tree.leaves(gaps)) < 0.02


def test_resumes_bit_for_bit_without_the_other_run(
    shapes_dir, first_stage, tuned, tmp_path
):
    source, workdir = tmp_path / "source", tmp_path / "run"
    shutil.copytree(first_stage, source)
    _tune(shapes_dir, workdir, source, steps=1)
    shutil.rmtree(source)
    _tune(shapes_dir, workdir, source, steps=2)
    for average in (True, False):
        ends = [checkpoint.load_weights(run, None, average) for run in (tuned, workdir)]
        assert_same_bits(ends[0][1], ends[1][1])
        assert ends[1][2]["init_from"]["workdir"] == str(source)


def test_everything_is_trained_where_nothing_is_frozen(
    shapes_dir, first_stage, second_stage, tmp_path, capsys
):
    _tune(shapes_dir, tmp_path, first_stage, steps=1, train__freeze=())
    assert f"starting from step 4 of {first_stage}" in capsys.readouterr().out
    before, _ = _split(load_first_stage(first_stage).params)
    after, _ = _split(load_first_stage(tmp_path, average=False).params)
    gaps = jax.tree.map(lambda a, b: np.abs(a - b).max(), before, after)
    assert 0 < max(jax.tree.leaves(gaps["encoder"])) < 0.02
    assert 0 < max(jax.tree.leaves(gaps["to_moments"])) < 0.02
    # So its decoder is one of other latents.
    with pytest.raises(ConfigError, match="of other latents"):
        sampling.load_model(second_stage, decoder=tmp_path)


def test_a_start_says_what_it_did_not_take(first_stage):
    changes = {"first_stage__norm_groups": 4, "train__init_from": str(first_stage)}
    config = tiny_config("shapes_autoencoder", "", **changes)
    _, params, _ = checkpoint.load_weights(first_stage, average=False)
    params["discriminator"]["conv_0"]["bias"] = np.zeros(4)
    notes = "; ".join(load_initial(config, params)[3])
    assert (
        "discriminator starts from new weights: discriminator/conv_0/bias is (8,)"
        in notes
    )
    # What shapes do not show.
    assert "first_stage.norm_groups is 4, in train.init_from it was 8" in notes


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"first_stage__embed_dim": 3}, "holds another model: autoencoder/from_lat"),
        ({"train__freeze": ("autoencoder/encodr",)}, 'mean "autoencoder/encoder"?'),
        ({"train__init_from": ""}, "give train.init_from"),
    ],
)
def test_what_does_not_fit_is_named(
    overrides, message, shapes_dir, first_stage, tmp_path
):
    with pytest.raises(ConfigError) as error:
        _tune(shapes_dir, tmp_path, first_stage, **overrides)
    assert message in str(error.value)


def test_a_second_stage_goes_on_from_another(
    shapes_dir, first_stage, second_stage, tmp_path
):
    overrides = {
        "first_stage__workdir": str(first_stage),
        "train__init_from": str(second_stage),
        "train__freeze": ("conditioner", "backbone/conv_in"),
        "train__num_steps": 1,
    }
    train("shapes_class", shapes_dir, tmp_path, **overrides)
    _, before, first_meta = checkpoint.load_weights(second_stage)
    _, after, meta = checkpoint.load_weights(tmp_path, average=False)
    assert meta["scaling_factor"] == first_meta["scaling_factor"]
    assert_same_bits(before["conditioner"], after["conditioner"])
    assert_same_bits(before["backbone"]["conv_in"], after["backbone"]["conv_in"])
    assert np.abs(before["backbone"]["conv_out"]["kernel"]).max() > 0
    moved = (
        before["backbone"]["conv_out"]["kernel"]
        != after["backbone"]["conv_out"]["kernel"]
    )
    assert moved.any()
    with pytest.raises(ConfigError, match="holds a run of the stage 'autoencoder'"):
        overrides |= {"train__init_from": str(first_stage)}
        train("shapes_class", shapes_dir, tmp_path / "wrong", **overrides)


def test_a_tuned_decoder_takes_the_place_of_the_old(
    second_stage, first_stage, tuned, tmp_path
):
    trained = sampling.load_model(second_stage, decoder=tuned)
    assert_same_bits(trained.frozen["first_stage"], load_first_stage(tuned).params)
    run(trained, tmp_path / "out", num_samples=1, num_steps=2)
    with pytest.raises(ConfigError, match="decoder: .*tuned.* there, None here"):
        old = sampling.load_model(second_stage)
        run(old, tmp_path / "out", num_samples=1, num_steps=2)


def test_another_first_stage_is_refused_on_resume(first_stage, tuned):
    """One that makes the same latents serves as well."""
    record = load_first_stage(first_stage).record
    check_same_first_stage(load_first_stage(tuned).record, record)
    with pytest.raises(CheckpointError, match="makes other latents .* step 4 of"):
        check_same_first_stage(record | {"checksum": 1}, record)
    kept = {"config": tiny_config("shapes_class", "").to_dict()}
    config = tiny_config("shapes_class", "", first_stage__scaling_factor=0.5)
    with pytest.raises(CheckpointError, match="first_stage.scaling_factor is None"):
        check_config(config, kept, allow_change=True)


def _config(stage, **sections):
    return ConfigDict(dict(stage=stage, seed=0, **sections))


@pytest.mark.parametrize("norm", ["actnorm", "none"])
def test_a_discriminator_brings_its_statistics(tmp_path, norm):
    """An activation norm's parameters are added to what the first batch asked for."""
    section = dict(
        kind="kl",
        channels=8,
        channel_mult=(1, 2),
        num_res_blocks=1,
        z_channels=3,
        embed_dim=3,
        norm_groups=4,
    )
    critic = PatchDiscriminator(channels=4, num_layers=1, norm=norm)
    drawn = critic.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    state = TrainState(
        step=jnp.int32(3),
        params={"autoencoder": {"w": jnp.ones(3)}, "discriminator": drawn["params"]},
        ema_params={},
        opt_state={},
        stats={"discriminator": drawn["batch_stats"]} if norm == "actnorm" else {},
    )
    seen = jax.tree.map(lambda leaf: leaf + 2, state.stats)
    config = _config("autoencoder", first_stage=section, train=dict(init_from=""))
    checkpoints = checkpoint.Checkpoints(tmp_path)
    meta = {"config": config.to_dict()}
    checkpoints.save(3, state.replace(stats=seen), meta)
    checkpoints.close()
    config.train.init_from = str(tmp_path)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    run = SimpleNamespace(
        config=config,
        meta={},
        console=SimpleNamespace(line=print),
        shardings=sharding.tree_shardings(state, mesh),
    )
    assert_same_bits(start_from(run, state).stats, seen)


ORIGINAL = dict(
    backbone=dict(
        channels=32,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_factors=(2, 1),
        transformer_depth=1,
        scale_shift_norm=False,
        num_heads=(1, 2),
        head_channels=None,
    ),
    conditions=dict(
        label=dict(kind="class_label", num_classes=10, features=16, null_class=True),
        caption=dict(kind="clip_text", frozen=True),
    ),
    schedule=dict(kind="linear", cosine_s=0.008, beta_start=1e-4, beta_end=2e-2),
)


def _changed(**changes):
    config = copy.deepcopy(ORIGINAL)
    for section, options in changes.items():
        config[section] |= options
    return _config("diffusion", **config)


def test_a_model_said_in_other_words_is_the_same():
    backbone = dict(num_heads=None, head_channels=32, attention_factors=(1, 2))
    label = dict(kind="class_label", num_classes=None, features=None, dropout=0.1)
    caption = dict(kind="clip_text", frozen=False)
    ours = _changed(
        backbone=backbone | dict(remat=True),
        conditions=dict(label=label, caption=caption, none=dict(kind="none")),
    )
    del ours.schedule.cosine_s
    ours.schedule.prediction_type = "noise"
    assert model_notes(ours, _changed()) == []


@pytest.mark.parametrize(
    "changes, expected",
    [
        (dict(backbone=dict(num_heads=2)), ["backbone.heads", "backbone.up_heads"]),
        (dict(backbone=dict(norm_groups=8)), ["backbone.norm_groups"]),
        (dict(schedule=dict(prediction_type="v")), ["schedule.prediction_type"]),
        (
            dict(schedule=dict(kind="scaled_linear")),
            ["schedule.last_alpha", "schedule.middle_alpha"],
        ),
        (
            dict(conditions=dict(caption=dict(kind="clip_text", activation="gelu"))),
            ["conditions.caption.activation"],
        ),
    ],
)
def test_what_shapes_do_not_show_is_noted(changes, expected):
    notes = model_notes(_changed(**changes), _changed())
    assert [note.split()[1] for note in notes] == expected


PARAMS = {"a": {"w": jnp.ones(3), "v": jnp.ones(2)}, "ab": {"w": jnp.ones(4)}}


def test_no_gradient_reaches_what_is_frozen():
    def loss(params):
        params = stop_frozen_gradients(params, ("a/w", "ab"))
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))

    gradients = jax.grad(loss)(PARAMS)
    assert [float(leaf[0]) for leaf in jax.tree.leaves(gradients)] == [2.0, 0.0, 0.0]


def test_frozen_layers_cost_no_backward_pass():
    weights = {"first": jnp.ones((64, 64)), "second": jnp.ones((64, 64))}

    def loss(weights, x, freeze):
        params = stop_frozen_gradients(weights, freeze)
        return jnp.sum((x @ params["first"]) @ params["second"])

    def products(freeze):
        step = jax.jit(jax.grad(functools.partial(loss, freeze=freeze)))
        return str(step.lower(weights, jnp.ones((8, 64))).as_text()).count(
            "dot_general"
        )

    assert products(("first",)) < products(())


def test_an_optimiser_holds_no_state_of_what_is_frozen():
    plain = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1))
    optimizer = freeze_updates(plain, ("a",))
    state = optimizer.init(PARAMS)
    sizes = [leaf.size for leaf in jax.tree.leaves(state)]
    assert sorted(sizes) == [1, 4, 4]  # Adam's count and two moments of ab/w.
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, PARAMS), state, PARAMS)
    assert not np.any(updates["a"]["w"]) and np.all(updates["ab"]["w"] < 0)
    assert freeze_updates(plain, ()) is plain


def test_paths():
    freeze = ("autoencoder/encoder/", "discriminator", "autoencoder/to_images/bias")
    assert within(freeze, "autoencoder") == ("encoder", "to_images/bias")
    assert within(freeze, "discriminator") == ("",)
    assert within(freeze, "backbone") == ()
    check_freeze(("a", "ab/w"), PARAMS)
    with pytest.raises(ConfigError, match='no parameters at "b"; choose from a/v, a/w'):
        check_freeze(("b",), PARAMS)
