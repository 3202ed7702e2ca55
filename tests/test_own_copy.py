"""A second stage has its first stage by itself, whatever becomes of the original."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax import checkpoint
from ldm_jax.build import make_first_stage
from ldm_jax.checkpoint import Checkpoints, TrainState, checkpoint_folder
from ldm_jax.config import to_dict
from ldm_jax.errors import CheckpointError, ConfigError
from ldm_jax.trained import load_first_stage, load_recorded, own_copy
from ldm_jax.training.autoencoder import _check_frozen as check_frozen
from ldm_jax.training.latents import open_first_stage
from tests.runs import assert_same_bits, tiny_config

COPY = "first_stage_copy"


def write_first_stage(workdir, seed=0, step=4, keep_last=1, decoder_seed=None):
    """Writes a first stage that nobody trained."""
    config = tiny_config("shapes_autoencoder", "")
    module = make_first_stage(config.first_stage)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    rngs = dict.fromkeys(("params", "posterior"), jax.random.key(0))
    shapes = jax.eval_shape(module.init, rngs, images)["params"]

    def draw(tree, seed):
        rng = np.random.default_rng(seed)
        return jax.tree.map(
            lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), tree
        )

    params = draw(shapes, seed)
    if decoder_seed is not None:
        params |= {"decoder": draw(shapes["decoder"], decoder_seed)}
    state = TrainState(np.asarray(step), {"autoencoder": params}, {}, {}, {})
    checkpoints = Checkpoints(workdir, keep_last)
    checkpoints.save(step, state, {"config": to_dict(config)})
    checkpoints.close()
    return workdir


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write_first_stage(tmp_path_factory.mktemp("first") / "stage")


@pytest.fixture
def source(original, tmp_path):
    """Workdir of a first stage that may be changed."""
    return shutil.copytree(original, tmp_path / "source")


def _open(workdir, source, meta=None):
    config = tiny_config("shapes_class", "", first_stage__workdir=str(source))
    return open_first_stage(config, meta or {}, workdir)


@pytest.fixture
def begun(source, tmp_path):
    """(workdir, meta, weights) of a second stage that has begun on `source`."""
    first = _open(tmp_path / "run", source)
    return tmp_path / "run", {"first_stage": first.record}, first.params


def _trained_further(source):
    write_first_stage(source, seed=1, step=8)


def _made_anew(source):
    shutil.rmtree(source)
    write_first_stage(source, seed=1)


def _spoilt(source):
    for path in source.rglob("*"):
        if path.is_file():
            path.write_bytes(b"spoilt")


FATES = [_trained_further, _made_anew, _spoilt, shutil.rmtree]


@pytest.mark.parametrize("fate", FATES)
def test_what_becomes_of_the_original_does_not_matter(begun, source, fate):
    workdir, meta, weights = begun
    fate(source)
    for first in (
        _open(workdir, source, meta),
        load_recorded(workdir, meta["first_stage"]),
    ):
        assert_same_bits(first.params, weights)
        assert first.record == meta["first_stage"]
    assert not list(workdir.glob("*.tmp"))


def test_the_copy_moves_with_the_workdir(begun, source, tmp_path):
    workdir, meta, weights = begun
    moved = workdir.rename(tmp_path / "moved")
    shutil.rmtree(source)
    assert_same_bits(load_recorded(moved, meta["first_stage"]).params, weights)


def test_without_a_copy_the_original_is_compared_and_copied(begun, source):
    """As in workdirs of older versions."""
    workdir, meta, weights = begun
    shutil.rmtree(workdir / COPY)
    assert_same_bits(load_recorded(workdir, meta["first_stage"]).params, weights)
    assert not (workdir / COPY).exists()
    _open(workdir, source, meta)
    assert (workdir / COPY).is_dir()
    shutil.rmtree(workdir / COPY)
    _made_anew(source)
    with pytest.raises(CheckpointError, match="makes other latents than what .*step 4"):
        load_recorded(workdir, meta["first_stage"])
    with pytest.raises(CheckpointError, match="makes other latents than what this run"):
        _open(workdir, source, meta)
    assert not (workdir / COPY).exists()


def test_another_decoder_is_refused_where_images_are_decoded(begun, source):
    workdir, meta, _ = begun
    shutil.rmtree(workdir / COPY)
    shutil.rmtree(source)
    write_first_stage(source, decoder_seed=1)
    with pytest.raises(CheckpointError, match="has another decoder than what"):
        load_recorded(workdir, meta["first_stage"])
    # What old checkpoints do not record is not compared.
    old = {k: v for k, v in meta["first_stage"].items() if "checksum" not in k}
    assert load_recorded(workdir, old).record["checksum"]


def test_another_first_stage_in_the_config_is_refused(begun, tmp_path):
    workdir, meta, _ = begun
    other = write_first_stage(tmp_path / "other", seed=2)
    with pytest.raises(CheckpointError, match="other makes other latents than what"):
        _open(workdir, other, meta)
    with pytest.raises(CheckpointError, match="other makes other latents than what"):
        load_recorded(workdir, meta["first_stage"], given=other)
    # One that moved, wherever it is now.
    _open(workdir, tmp_path / "nowhere", meta)


def test_a_damaged_copy_is_named_with_what_to_do(begun):
    workdir, meta, weights = begun
    path = next((workdir / COPY).glob("checkpoints/4/params/*/d/*"))
    path.write_bytes(b"spoilt")
    with pytest.raises(CheckpointError) as error:
        load_recorded(workdir, meta["first_stage"])
    assert "is not what was saved; it is a copy of step 4 of" in str(error.value)
    assert str(error.value).endswith(f"rm -r {workdir / COPY}")
    shutil.rmtree(workdir / COPY)
    assert_same_bits(load_recorded(workdir, meta["first_stage"]).params, weights)


def test_a_run_that_begins_again_copies_again(begun, source, monkeypatch):
    """Its first attempt came to no checkpoint, and left half a copy of another."""

    def load(*arguments, **named):
        raise AssertionError("Orbax's loading waits for all processes of a job")

    # The first process alone looks whether there is a copy.
    monkeypatch.setattr(own_copy, "load_first_stage", load)
    workdir, _, _ = begun
    (workdir / f"{COPY}.tmp" / "checkpoints").mkdir(parents=True)
    _trained_further(source)
    first = _open(workdir, source)
    found = load_first_stage(workdir / COPY)
    assert found.record["step"] == first.record["step"] == 8
    assert_same_bits(found.params, first.params)
    before = checkpoint_folder(workdir / COPY).stat().st_mtime_ns
    _open(workdir, source)
    assert checkpoint_folder(workdir / COPY).stat().st_mtime_ns == before


def test_the_copy_is_of_weights_alone_and_has_checksums(begun):
    folder = checkpoint_folder(begun[0] / COPY)
    found = {path.name for path in folder.iterdir()}
    assert {"params", "meta", "checksums.json"} <= found
    assert "training" not in found
    with pytest.raises(CheckpointError, match="'training' is missing"):
        checkpoint.load_item(folder, "training")


def test_other_weights_of_lpips_are_refused():
    config = tiny_config("shapes_autoencoder", "", loss__lpips_weights="vgg.pth")
    begun = {"lpips": 1}
    for meta in ({}, begun, {"of": "before"}):
        check_frozen(config, begun, meta)
    check_frozen(config, {}, begun)
    with pytest.raises(CheckpointError, match="lpips_weights=vgg.pth holds other wei"):
        check_frozen(config, {"lpips": 2}, begun)


def test_no_copy_of_no_first_stage(tmp_path):
    first = _open(tmp_path / "run", "identity")
    assert not (tmp_path / "run").exists()
    assert load_recorded(tmp_path / "run", first.record).config is None
    with pytest.raises(ConfigError, match="came without a first stage"):
        load_recorded(tmp_path / "run", None)
