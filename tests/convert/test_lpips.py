"""LPIPS: the reference case, the files that people have, errors, gradients."""

import jax
import numpy as np
import pytest

from ldm_jax.errors import ConfigError, ConversionError
from ldm_jax.models.lpips import LPIPS
from ldm_jax.weights import lpips
from ldm_jax.weights.files import write_weights
from tests.common import assert_close, load_case, nhwc
from tests.runs import assert_same_bits


@pytest.fixture(scope="module")
def case():
    return load_case("lpips_vgg16")


@pytest.fixture(scope="module")
def params(case):
    return lpips.convert_lpips(case.state_dict)


@pytest.fixture(scope="module")
def distance(params):
    return jax.jit(lambda x, y: LPIPS().apply({"params": params}, x, y))


def _published(state_dict):
    """The same weights as torchvision and the lpips package name them."""
    vgg = {
        f"features.{key.split('.', 2)[2]}": array
        for key, array in state_dict.items()
        if key.startswith("net.")
    }
    heads = {key: array for key, array in state_dict.items() if key.startswith("lin")}
    return vgg | {"classifier.0.weight": np.zeros((3, 2), np.float32)}, heads


def test_matches_compvis(case, distance):
    x, y = (nhwc(case.arrays[name]) for name in "xy")
    assert_close(distance(x, y), case.arrays["output"].ravel())
    np.testing.assert_array_equal(distance(x, x), 0)


def test_files_of_every_kind_give_the_same_weights(case, params, tmp_path, capsys):
    vgg, heads = _published(case.state_dict)
    write_weights(tmp_path / "vgg16.pth", vgg)
    write_weights(tmp_path / "heads.safetensors", heads)
    output = str(tmp_path / "lpips.safetensors")
    files = [str(tmp_path / name) for name in ("vgg16.pth", "heads.safetensors")]
    lpips._main(["lpips", *files, output])
    assert output in capsys.readouterr().out
    assert_same_bits(lpips.load_lpips(output), params)
    assert_same_bits(lpips.read_lpips(",".join(files), "--lpips_weights"), params)
    inside = {f"loss.perceptual_loss.{k}": v for k, v in case.state_dict.items()}
    assert_same_bits(lpips.convert_lpips(inside | {"decoder.x": vgg}), params)


def test_what_is_missing_is_named(case, tmp_path):
    with pytest.raises(ConversionError, match="there is no file .*vgg16-397923af.pth"):
        lpips.load_lpips(tmp_path / "absent.safetensors")
    with pytest.raises(ConfigError, match="--guide_lpips: .*no file .*VGG16.*; or not"):
        lpips.read_lpips(f"{tmp_path}/a.pth,b.pth", "--guide_lpips", "or not")
    vgg, _ = _published(case.state_dict)
    write_weights(tmp_path / "vgg16.safetensors", vgg)
    with pytest.raises(ConversionError, match=r"lin0.model.1.weight \(for head1\)"):
        lpips.load_lpips(tmp_path / "vgg16.safetensors")
    with pytest.raises(ConversionError, match="give one or two files"):
        lpips._main(["lpips"])
    with pytest.raises(ConversionError, match="there is no file"):
        lpips._main(["lpips", str(tmp_path / "absent.pth"), "out.safetensors"])
