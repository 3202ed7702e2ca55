"""Every config builds, at its full size on shapes alone and as a toy for real."""

import importlib
import pathlib

import jax
import jax.numpy as jnp
import pytest

from ldm_jax import latent_diffusion
from ldm_jax.training.autoencoder import make_first_stage
from ldm_jax.training.diffusion import make_model
from tests.runs import ROOT, train

NAMES = sorted(
    path.stem
    for path in pathlib.Path(ROOT / "configs").glob("*.py")
    if path.stem not in ("__init__", "common")
)

# First stage that each second stage is made for, and the published sizes.
FIRST_STAGES = {
    "shapes_class": "shapes_autoencoder",
    "imagenet_class_f4": "autoencoder_kl_f4",
}
PUBLISHED = {"autoencoder_kl_f4": 55_312_063, "imagenet_class_f4": 400_920_579}


def _load(name, variant=""):
    return importlib.import_module(f"configs.{name}").get_config(variant)


def _size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("variant", ["", "tiny"])
def test_builds_with_the_published_number_of_parameters(name, variant):
    config = _load(name, variant)
    first = _load(FIRST_STAGES[name], variant) if name in FIRST_STAGES else config
    autoencoder = make_first_stage(first.first_stage)
    side = config.data.image_size
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    key = jax.random.key(0)
    if config.stage == "autoencoder":
        params = jax.eval_shape(autoencoder.init, key, images)["params"]
    else:
        model = make_model(config, autoencoder, num_classes=8)
        batch = {"image": images, "label": jax.ShapeDtypeStruct((1,), jnp.int32)}
        params = jax.eval_shape(
            lambda rng, batch: latent_diffusion.init(model, rng, batch), key, batch
        )["unet"]
    if name in PUBLISHED and not variant:
        assert _size(params) == PUBLISHED[name]
    else:
        assert 0 < _size(params) < 10_000_000


@pytest.mark.parametrize("name", NAMES)
def test_docstring_states_command_and_result(name):
    text = importlib.import_module(f"configs.{name}").__doc__
    assert f"python train.py --config=configs/{name}.py" in text
    assert "Published" in text or "README" in text


@pytest.mark.parametrize("name", NAMES)
def test_unknown_variants_are_refused(name):
    with pytest.raises(ValueError, match='variant "huge" is unknown'):
        _load(name, "huge")


def test_the_imagenet_pair_runs_as_a_toy(shapes_dir, tmp_path):
    bare = {"train__preview_images": 0, "train__num_steps": 1}
    bare |= {"data__eval_split": "", "train__log_every": 1}
    train("autoencoder_kl_f4", shapes_dir, tmp_path / "ae", **bare)
    metrics = train(
        "imagenet_class_f4",
        shapes_dir,
        tmp_path / "ldm",
        first_stage__workdir=str(tmp_path / "ae"),
        **bare,
    )
    assert metrics["loss"] > 0
