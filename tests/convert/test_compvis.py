"""The original's networks, fed through the converter, against what they computed."""

import jax
import numpy as np
import pytest

from ldm_jax.convert import compvis, compvis_rows
from ldm_jax.convert.state_dict import to_params, to_state_dict
from ldm_jax.models.autoencoder import KLAutoencoder
from ldm_jax.models.discriminator import PatchDiscriminator
from ldm_jax.models.unet import UNet
from tests.common import REFERENCE, assert_close, load_case, nhwc

UNET_CASES = sorted(path.stem for path in REFERENCE.glob("unet_*.npz"))
AUTOENCODER_CASES = sorted(p.stem for p in REFERENCE.glob("autoencoder_kl_*.npz"))


def test_there_are_cases():
    assert UNET_CASES and AUTOENCODER_CASES


@pytest.mark.parametrize("name", UNET_CASES)
def test_unet_matches_original(name):
    case = load_case(name)
    config, arrays = case.meta["config"], case.arrays
    params, label = compvis.convert_unet(case.state_dict, config)
    vector = label["embed"]["embedding"][arrays["y"]] if label else None
    unet = UNet(**compvis.unet_kwargs(config))
    output = jax.jit(unet.apply)(
        {"params": params},
        nhwc(arrays["x"]),
        arrays["timesteps"],
        arrays.get("context"),
        vector=vector,
    )
    assert_close(output, nhwc(arrays["output"]))


@pytest.mark.parametrize("name", AUTOENCODER_CASES)
def test_autoencoder_matches_original(name):
    case = load_case(name)
    arguments = case.meta["config"]["ddconfig"], case.meta["config"]["embed_dim"]
    arrays = {k: nhwc(v) if v.ndim == 4 else v for k, v in case.arrays.items()}
    params = compvis.convert_autoencoder(case.state_dict, *arguments)
    model = KLAutoencoder(**compvis.autoencoder_kwargs(*arguments))
    decode = jax.jit(lambda z: model.apply({"params": params}, z, method="decode"))
    posterior = model.apply({"params": params}, arrays["x"], method="encode")
    mean, logvar = np.split(arrays["moments"], 2, axis=-1)
    assert_close(posterior.mean, mean)
    assert_close(posterior.logvar, np.clip(logvar, -30, 20))
    assert_close(posterior.sample(noise=arrays["noise"]), arrays["sample"])
    assert_close(posterior.mode(), arrays["mode"])
    assert_close(posterior.kl(), arrays["kl"])
    assert_close(posterior.nll(np.zeros_like(mean)), arrays["nll_of_zero"])
    assert_close(decode(arrays["sample"]), arrays["decoded_sample"])
    assert_close(decode(arrays["mode"]), arrays["decoded_mode"])


def test_discriminator_matches_original():
    case = load_case("patch_discriminator")
    config, arrays = case.meta["config"], case.arrays
    variables = compvis.convert_discriminator(case.state_dict, **config)
    model = PatchDiscriminator(config["ndf"], config["n_layers"])
    images = nhwc(arrays["x"])
    assert_close(model.apply(variables, images), nhwc(arrays["output_eval"]))
    output, updated = model.apply(
        variables, images, train=True, mutable=["batch_stats"]
    )
    assert_close(output, nhwc(arrays["output_train"]))
    for i in (1, 2, 3):
        stats = updated["batch_stats"][f"norm_{i}"]
        assert_close(stats["mean"], arrays[f"main__{3 * i}__running_mean"])
        assert_close(stats["var"], arrays[f"main__{3 * i}__running_var"])
