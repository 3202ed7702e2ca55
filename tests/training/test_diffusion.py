"""The second stage's step with a frozen condition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from ldm_jax.conditioners import make_conditioner
from ldm_jax.diffusion.latent_statistics import LatentStatistics
from ldm_jax.diffusion.schedule import make_schedule
from ldm_jax.errors import ConfigError
from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.models.autoencoder import KLAutoencoder
from ldm_jax.models.image_encoder import ImageEncoder
from ldm_jax.models.unet import UNet
from ldm_jax.training import diffusion
from ldm_jax.weights.files import write_weights
from ldm_jax.weights.state_dict import to_state_dict
from ldm_jax.weights.tower_names import clip_image_rows
from tests.common import load_case
from tests.runs import tiny_config, train, weights_of

VOCABULARY = 23  # a size that no other parameter has
CAPTION = {
    "kind": "clip_text",
    "vocab_size": VOCABULARY,
    "features": 8,
    "num_layers": 1,
    "num_heads": 2,
    "null_ids": (1, 2),
}


def make_model():
    unet = UNet(
        out_channels=2,
        channels=8,
        channel_mult=(1,),
        num_res_blocks=1,
        num_heads=1,
        transformer_depth=1,
        norm_groups=2,
    )
    first_stage = KLAutoencoder(
        channels=8,
        channel_mult=(1, 1),
        num_res_blocks=1,
        z_channels=2,
        embed_dim=2,
        norm_groups=2,
        mid_attention=False,
    )
    conditioner = make_conditioner({"caption": CAPTION})
    return LatentDiffusion(unet, conditioner, make_schedule(), first_stage)


def test_frozen_weights_neither_move_nor_have_moments():
    model = make_model()
    batch = {
        "image": np.zeros((2, 8, 8, 3), np.uint8),
        "caption": np.ones((2, 4), np.int32),
    }
    weights = model.first_stage.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    frozen = {
        "first_stage": weights["params"],
        "statistics": LatentStatistics().arrays(),
    }
    config = tiny_config("shapes_class", "")
    config.train.warmup_steps = 0
    stage = diffusion.make_steps(config, model, frozen, batch)
    before = jax.jit(stage.init)(jax.random.key(1))
    after, _ = jax.jit(stage.train_step)(before, frozen, batch)
    for name in ("params", "ema_params"):
        old, new = (getattr(state, name) for state in (before, after))
        same = np.testing.assert_array_equal
        jax.tree.map(same, new["conditioner"], old["conditioner"])
        kernels = (tree["backbone"]["conv_out"]["kernel"] for tree in (old, new))
        assert np.any(np.not_equal(*kernels))
    shapes = [leaf.shape for leaf in jax.tree.leaves(after.opt_state)]
    trained = new["backbone"]["time_in"]["kernel"].shape
    assert (VOCABULARY, 8) not in shapes and trained in shapes


def test_random_weights_are_not_frozen(shapes_dir, first_stage, tmp_path):
    with pytest.raises(ConfigError, match="conditions.caption is frozen"):
        train(
            "shapes_class",
            shapes_dir,
            tmp_path,
            first_stage__workdir=str(first_stage),
            conditions=ConfigDict({"caption": CAPTION}),
        )


STYLE = {
    "kind": "clip_image",
    "slot": "vector",
    "image_size": 28,
    "patch_size": 7,
    "width": 32,
    "num_layers": 2,
    "num_heads": 4,
    "head_channels": 8,
    "embed_dim": 24,
    "mlp_ratio": 2,
}


def test_a_new_run_begins_with_the_weights_that_a_condition_names(
    shapes_dir, first_stage, tmp_path
):
    case = load_case("clip_image")
    write_weights(tmp_path / "tower.safetensors", case.state_dict)
    style = STYLE | {"weights": str(tmp_path / "tower.safetensors")}
    run = dict(
        first_stage__workdir=str(first_stage),
        conditions=ConfigDict({"image": style}),
        backbone__channels=8,
        backbone__channel_mult=(1,),
        backbone__attention_factors=(),
        backbone__head_channels=8,
        backbone__norm_groups=2,
        train__num_steps=3,  # A U-Net starts at zero: its inputs learn two steps later.
    )
    train("shapes_class", shapes_dir, tmp_path / "run", **run)
    for average in (False, True):
        params = weights_of(tmp_path / "run", average)["conditioner"]["image"]
        found = to_state_dict(
            clip_image_rows(ImageEncoder(num_layers=2)), params["tower"]
        )
        for key, array in case.state_dict.items():
            np.testing.assert_array_equal(found[key], array, err_msg=key)
        assert params["project"]["bias"].any()  # It starts at zero, and is trained.
    # They are in its checkpoints: what follows does not look for the file.
    (tmp_path / "tower.safetensors").unlink()
    train("shapes_class", shapes_dir, tmp_path / "run", **run)
    with pytest.raises(ConfigError, match="conditions.image.weights: there is no file"):
        train("shapes_class", shapes_dir, tmp_path / "other", **run)


def test_conditions_that_do_not_fit_the_unet_are_refused(
    shapes_dir, first_stage, tmp_path
):
    label = {"kind": "class_label", "features": 8, "slot": "context"}
    with pytest.raises(ConfigError, match="do not fit: a context needs transformer"):
        train(
            "shapes_class",
            shapes_dir,
            tmp_path,
            first_stage__workdir=str(first_stage),
            conditions=ConfigDict({"label": label}),
        )
