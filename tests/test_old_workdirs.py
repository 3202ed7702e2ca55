"""Workdirs of version 0.1.0 sample and resume as they did then.

`old_workdirs.tar.xz` was made with version 0.1.0 and jax 0.10.2 on one CPU device,
under the flags that tests run with. `train` of `tests/runs.py` trained `:tiny` of
shapes_autoencoder, shapes_class and shapes_classifier for two steps each on the tiny
`shapes`, without previews and evaluations (BARE) and with networks as small as they
get: the denoiser with DENOISER below; the first stage with 4 channels, channel_mult of
(1, 1) and norms of 2 groups, its discriminator with 4 channels; the classifier with 4
channels, channel_mult of (1,), norms of 2 groups, heads of 4 channels and no
attention_factors. Of each the checkpoints and config.json were kept; they name the
folder /tmp/old_workdirs, from which they have moved since. `samples.npz` is what
`sample.py --num_samples=4 --num_steps=4 --npz` wrote for the second stage;
`resumed.npz` and `resumed_ema.npz` hold its weights and their moving average after it
was resumed to step 4, as "a/b/c" -> array. The denoiser was called `unet` then, in
configs and among the parameters.
"""

import pathlib
import shutil
import tarfile

import jax
import numpy as np
import pytest

from ldm_jax import sampling
from ldm_jax.convert import workdir
from ldm_jax.convert.formats import convert
from ldm_jax.sharding import path_name
from ldm_jax.training import loop
from ldm_jax.training.start.init_from import load_initial
from tests.runs import assert_same_bits, tiny_config, train, weights_of
from tests.sampling.common import run

ARCHIVE = pathlib.Path(__file__).parent / "old_workdirs.tar.xz"

# What `unet` is called today.
NETWORK = "backbone"

# Steps are large, so that images depend on the weights, and a large eps keeps
# gradients that are mere rounding errors, such as those of the keys' biases, small.
DENOISER = {
    f"{NETWORK}__channels": 8,
    f"{NETWORK}__channel_mult": (1,),
    f"{NETWORK}__norm_groups": 4,
    f"{NETWORK}__head_channels": 8,
    "train__learning_rate": 0.03,
    "train__decay_steps": None,
    "train__optimizer__eps": 1e-4,
    "first_stage__scaling_batches": 16,
}


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """Folder of the unpacked archive."""
    folder = tmp_path_factory.mktemp("old_workdirs")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def one_device(monkeypatch):
    devices = jax.local_devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)


def arrays(path):
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def today(name):
    """Today's name of a parameter."""
    head, *rest = name.split("/")
    return "/".join([NETWORK if head == "unet" else head, *rest])


def test_samples_the_same_images(old, tmp_path, one_device):
    model = sampling.load_model(old / "class")
    run(model, tmp_path, num_samples=4, num_steps=4, npz=True)
    expected, found = arrays(old / "samples.npz"), arrays(tmp_path / "samples.npz")
    assert found.keys() == expected.keys()
    images, labels = "arr_0", "label"
    np.testing.assert_array_equal(found[labels], expected[labels])
    assert found[images].dtype == np.uint8
    distance = found[images].astype(int) - expected[images]
    assert np.abs(distance).max() <= 1


def test_resumes_to_the_same_weights(old, shapes_dir, tmp_path):
    workdir = shutil.copytree(old / "class", tmp_path / "class")
    place = {"first_stage__workdir": str(old / "autoencoder")}
    train("shapes_class", shapes_dir, workdir, **place, **DENOISER)
    for average, name in ((False, "resumed.npz"), (True, "resumed_ema.npz")):
        expected = {today(key): value for key, value in arrays(old / name).items()}
        leaves = jax.tree.leaves_with_path(weights_of(workdir, average))
        found = {path_name(path): leaf for path, leaf in leaves}
        assert found.keys() == expected.keys()
        for key, value in found.items():
            np.testing.assert_allclose(
                value, expected[key], rtol=0, atol=1e-5, err_msg=f"{name}: {key}"
            )


def test_a_config_of_before_goes_on_with_a_note(old, shapes_dir, tmp_path, capsys):
    workdir = shutil.copytree(old / "class", tmp_path / "class")
    place = {"first_stage__workdir": str(old / "autoencoder")}
    options = place | DENOISER | {"train__num_steps": 2}
    config = tiny_config("shapes_class", shapes_dir, **options)
    config.unet = config.backbone.to_dict()
    del config.backbone, config.unet["kind"]
    assert loop.run(config, workdir) == {}
    printed = capsys.readouterr().out
    assert "`unet` is called `backbone` now: rename it" in printed
    assert "step 2 of 2: already trained" in printed


def test_a_new_run_starts_from_the_weights(old):
    config = tiny_config("shapes_class", "", **DENOISER)
    config.train.init_from = str(old / "class")
    expected = weights_of(old / "class", True)
    weights, _, record, notes = load_initial(config, expected)
    assert NETWORK in weights
    assert_same_bits(weights, expected)
    assert record["step"] == 2 and len(notes) == 1, notes


def test_is_converted(old, tmp_path):
    convert(old / "class", tmp_path / "theirs", log=lambda line: None)
    model = workdir.read(old / "class")
    assert model.config[NETWORK]["kind"] == "unet" and "unet" not in model.config
    assert model.params[NETWORK].keys() == model.ema_params[NETWORK].keys()
    assert (tmp_path / "theirs" / "unet" / "config.json").is_file()


def test_a_classifier_guides(old, tmp_path, one_device):
    model = sampling.load_model(old / "class", classifier=old / "classifier")
    assert model.classifier.class_names == model.class_names
    given = {"labels": ["heart"]}
    run(model, tmp_path, given, num_samples=1, num_steps=2)
    assert (tmp_path / "samples" / "000000.png").is_file()
