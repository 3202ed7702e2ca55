"""Flags of evaluations: none is passed over in silence."""

from types import SimpleNamespace

import pytest

from ldm_jax.conditioners import Conditioner
from ldm_jax.diffusion.schedule import make_schedule
from ldm_jax.errors import ConfigError
from ldm_jax.evaluation import flag_groups
from ldm_jax.evaluation.compare import Comparison, open_measurement
from ldm_jax.evaluation.flag_groups import check_used
from ldm_jax.evaluation.image_sets import ImageSet
from ldm_jax.evaluation.summary import summarise
from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.models.autoencoder import IdentityAutoencoder
from ldm_jax.models.unet import UNet
from ldm_jax.sharding import make_mesh


def test_files_of_weights_that_nothing_uses():
    check_used(["fid", "frechet"], {"inception": "a.pth"})
    check_used(["pytorch_fid"], {"inception": "a.pth"})
    check_used(["cmmd", "fid"], {"clip": "a", "inception": "b"})
    message = "--feature_weights=dinov2=a: --distances=fid uses inception, nothing"
    with pytest.raises(ConfigError, match=message):
        check_used(["fid"], {"inception": "b", "dinov2": "a"})
    with pytest.raises(ConfigError, match="inception_pytorch_fid=a: .* leave it out"):
        check_used(["fid"], {"inception_pytorch_fid": "a"})
    with pytest.raises(ConfigError, match="is not given, nothing .* with inception"):
        check_used([], {"inception": "a"})


@pytest.mark.parametrize(
    "entries, refused, takes",
    [
        ({}, ["label_mode", "split"], "nothing"),
        ({"label": {"kind": "class_label", "num_classes": 3}}, ["split"], "label"),
        ({"caption": {"kind": "text"}}, ["label_mode"], "caption"),
    ],
)
def test_conditions_that_no_sample_gets(entries, refused, takes, monkeypatch):
    model = LatentDiffusion(
        UNet(3, 32), Conditioner(entries), make_schedule(), IdentityAutoencoder()
    )
    for name in ("label_mode", "split"):
        given = {
            each: SimpleNamespace(present=each == name)
            for each in ("label_mode", "split")
        }
        values = SimpleNamespace(FLAGS=given)
        monkeypatch.setattr(flag_groups, "flags", values)
        if name in refused:
            with pytest.raises(ConfigError, match=f"--{name}: .* takes? {takes}; lea"):
                flag_groups.refuse_conditions(model)
        else:
            flag_groups.refuse_conditions(model)


def test_a_size_that_no_image_is_brought_to(tmp_path):
    images = ImageSet("drawn", 4, (16, 16), lambda start: iter(()), {"sample": {}})
    for distance, reason in (
        ("frechet", "the training images, has a size of its own"),
        ("inception_score", "--distances=inception_score compare with no images"),
    ):
        how = Comparison([distance], tmp_path, {}, training={}, image_size=16)
        with pytest.raises(ConfigError, match=f"--image_size=16: .*{reason}; leave"):
            open_measurement(images, how, make_mesh())


@pytest.mark.parametrize("last", ["", '{"step": 3, "lo', "[1]"])
def test_a_line_that_a_kill_has_cut_is_passed_over(tmp_path, last):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2}\n{"step": 2, "loss": 1}\n' + last)
    assert summarise(tmp_path) == (2, {"loss": 1})
    path.write_text('{"loss": 2}\n{"step": 2, "loss": 1}\n')
    with pytest.raises(ConfigError, match="metrics.jsonl, line 1, is none of a run's"):
        summarise(tmp_path)
