"""What is saved comes back to the bit; a damaged checkpoint is never passed over."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ldm_jax import checkpoint, sharding
from ldm_jax.checkpoint import Checkpoints, TrainState
from ldm_jax.checkpoint.folder import saved_steps
from ldm_jax.errors import CheckpointError

META = {
    "config": {
        "stage": "diffusion",
        "mult": [1, 2],
        "backbone": {"kind": "unet", "channels": 8, "attention_kernel": "cudnn"},
    },
    "scaling_factor": 0.18215,
}


def _init(features=512, average=True):
    def init(rng):
        params = {"net": {"kernel": jax.random.normal(rng, (512, features))}}
        return TrainState(
            step=jnp.int32(7),
            params=params,
            ema_params=jax.tree.map(lambda p: p + 1, params) if average else {},
            opt_state={"net": optax.adamw(1e-3).init(params)},
            stats={},
        )

    return init


def _state(mesh, init):
    abstract = jax.eval_shape(init, jax.random.key(0))
    shardings = sharding.tree_shardings(abstract, mesh)
    state = jax.jit(init, out_shardings=shardings)(jax.random.key(0))
    return state, sharding.abstract_like(abstract, shardings)


@pytest.fixture
def workdir(tmp_path):
    state, _ = _state(sharding.make_mesh(2, 4), _init())
    checkpoints = Checkpoints(tmp_path, keep_last=2, keep_every=10)
    for step in (10, 11, 12, 13):
        checkpoints.save(step, state, META)
    checkpoints.close()
    return tmp_path


def test_restores_to_the_bit_on_another_mesh(workdir):
    state, abstract = _state(sharding.make_mesh(8, 1), _init())
    checkpoints = Checkpoints(workdir)
    restored = checkpoints.restore(checkpoints.latest_step, abstract)
    assert checkpoints.meta(13) == META
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    same = jax.tree.map(lambda a, b: a.sharding == b.sharding, restored, abstract)
    assert jax.tree.all(same)


def _kept(workdir):
    return sorted(path.name for path in (workdir / "checkpoints").iterdir())


def test_keeps_the_newest_and_the_milestones(workdir):
    assert _kept(workdir) == ["10", "12", "13"]


def test_what_a_kill_leaves_of_a_trial_of_the_disk_is_no_checkpoint(workdir):
    left = workdir / "checkpoints" / ".disk_trial.0.tmp"
    left.write_bytes(b"0")
    checkpoints = Checkpoints(workdir, keep_last=2, keep_every=10)
    assert checkpoints.latest_step == 13
    state, _ = _state(sharding.make_mesh(2, 4), _init())
    checkpoints.save(14, state, META)
    checkpoints.close()
    left.unlink()
    assert _kept(workdir) == ["10", "13", "14"]


def test_a_folder_with_a_raised_digit_is_no_checkpoint(workdir):
    (workdir / "checkpoints" / "²").mkdir()
    assert saved_steps(workdir / "checkpoints") == [10, 12, 13]


def test_weights_for_use_are_the_average(workdir):
    state, _ = _state(sharding.make_mesh(), _init())
    config, params, meta = checkpoint.load_weights(workdir, 12)
    assert config.mult == (1, 2)
    # Where it is loaded there may be another device.
    assert config.backbone.to_dict() == {"kind": "unet", "channels": 8}
    assert meta["scaling_factor"] == 0.18215
    jax.tree.map(np.testing.assert_array_equal, params, state.ema_params)
    _, raw, _ = checkpoint.load_weights(workdir, average=False)
    jax.tree.map(np.testing.assert_array_equal, raw, state.params)


def test_a_run_without_average_gives_its_parameters(tmp_path):
    state, abstract = _state(sharding.make_mesh(), _init(average=False))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state, META)
    checkpoints.wait()
    assert checkpoints.restore(1, abstract).ema_params == {}
    checkpoints.close()
    _, params, _ = checkpoint.load_weights(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, params, state.params)


def test_another_model_is_named(workdir):
    _, abstract = _state(sharding.make_mesh(), _init(features=256))
    checkpoints = Checkpoints(workdir)
    with pytest.raises(CheckpointError, match=r"net/kernel is \(512, 512\) there"):
        checkpoints.restore(13, abstract)
    checkpoints.close()


@pytest.mark.parametrize("damage", ["data", "item", "everything", "metadata"])
def test_a_damaged_checkpoint_is_an_error_not_an_older_one(workdir, damage):
    folder = workdir / "checkpoints" / "13"
    if damage == "data":
        shutil.rmtree(folder / "params" / "d")
    elif damage == "item":
        shutil.rmtree(folder / "training")
    elif damage == "everything":
        shutil.rmtree(folder)
        folder.mkdir()
    else:
        (folder / "params" / "_METADATA").write_text("{")
    _, abstract = _state(sharding.make_mesh(), _init())
    checkpoints = Checkpoints(workdir)
    assert checkpoints.latest_step == 13
    with pytest.raises(CheckpointError, match="cannot read .*checkpoints/13"):
        checkpoints.meta(13)
        checkpoints.restore(13, abstract)
    checkpoints.close()


def test_what_is_missing_is_named(workdir, tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        checkpoint.load_weights(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="step 99 .* it holds 10, 12, 13"):
        checkpoint.load_weights(workdir, 99)
