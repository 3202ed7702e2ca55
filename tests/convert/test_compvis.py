"""CompVis's networks, fed through the converter, against what they computed."""

import jax
import numpy as np
import pytest

from ldm_jax.conditioners import ClassLabel
from ldm_jax.convert.compvis import names, options
from ldm_jax.models.autoencoder import KLAutoencoder
from ldm_jax.models.discriminator import PatchDiscriminator
from ldm_jax.models.unet import UNet
from ldm_jax.weights.state_dict import to_state_dict
from tests.common import REFERENCE, assert_close, load_case, nhwc
from tests.convert import networks

UNET_CASES = sorted(path.stem for path in REFERENCE.glob("unet_*.npz"))
AUTOENCODER_CASES = sorted(p.stem for p in REFERENCE.glob("autoencoder_kl_*.npz"))


def test_there_are_cases():
    assert UNET_CASES and AUTOENCODER_CASES


@pytest.mark.parametrize("name", UNET_CASES)
def test_unet_matches_compvis(name):
    case = load_case(name)
    config, arrays = case.meta["config"], case.arrays
    params, label = networks.convert_unet(case.state_dict, config)
    vector = label["embed"]["embedding"][arrays["y"]] if label else None
    unet = UNet(**options.unet_kwargs(config))
    output = jax.jit(unet.apply)(
        {"params": params},
        nhwc(arrays["x"]),
        arrays["timesteps"],
        arrays.get("context"),
        vector=vector,
    )
    assert_close(output, nhwc(arrays["output"]))


@pytest.mark.parametrize("name", AUTOENCODER_CASES)
def test_autoencoder_matches_compvis(name):
    case = load_case(name)
    arguments = case.meta["config"]["ddconfig"], case.meta["config"]["embed_dim"]
    arrays = {k: nhwc(v) if v.ndim == 4 else v for k, v in case.arrays.items()}
    params = networks.convert_autoencoder(case.state_dict, *arguments)
    model = KLAutoencoder(**options.autoencoder_kwargs(*arguments))
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


def test_discriminator_matches_compvis():
    case = load_case("patch_discriminator")
    config, arrays = case.meta["config"], case.arrays
    variables = networks.convert_discriminator(case.state_dict, **config)
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


def _unet(channels, **changes):
    config = dict(
        in_channels=3,
        out_channels=3,
        model_channels=channels,
        num_res_blocks=2,
        attention_resolutions=[8, 4, 2],
        channel_mult=[1, 2, 3, 4],
    )
    return config | changes


def _transformer(context_dim, **changes):
    return dict(use_spatial_transformer=True, context_dim=context_dim) | changes


PUBLISHED_UNETS = {
    "celeba256": (274_056_163, _unet(224, num_head_channels=32)),
    "lsun_churches256": (
        294_966_916,
        _unet(
            192,
            in_channels=4,
            out_channels=4,
            channel_mult=[1, 2, 2, 4, 4],
            attention_resolutions=[1, 2, 4, 8],
            num_heads=8,
            use_scale_shift_norm=True,
            resblock_updown=True,
        ),
    ),
    "cin256-v2": (
        400_920_579,
        _unet(192, channel_mult=[1, 2, 3, 5], num_heads=1, **_transformer(512)),
    ),
    "semantic_synthesis256": (
        215_229_315,
        _unet(
            128,
            in_channels=6,
            channel_mult=[1, 4, 8],
            attention_resolutions=[32, 16, 8],
            num_heads=8,
        ),
    ),
    "txt2img-1p4B": (
        872_300_484,
        _unet(
            320,
            in_channels=4,
            out_channels=4,
            channel_mult=[1, 2, 4, 4],
            attention_resolutions=[4, 2, 1],
            num_heads=8,
            legacy=False,
            **_transformer(1280),
        ),
    ),
}


def _count(shapes):
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize("name", PUBLISHED_UNETS)
def test_unet_has_the_published_number_of_parameters(name):
    published, config = PUBLISHED_UNETS[name]
    assert _count(networks.unet_shapes(config)) == published


@pytest.mark.parametrize(
    "z_channels, ch_mult, attn_resolutions, published",
    [
        (3, [1, 2, 4], [], 55_312_063),
        (4, [1, 2, 4, 4], [], 83_653_863),
        (16, [1, 1, 2, 2, 4], [16], 69_610_963),
        (64, [1, 1, 2, 2, 4, 4], [16, 8], 103_880_131),
    ],
    ids=["kl-f4", "kl-f8", "kl-f16", "kl-f32"],
)
def test_autoencoder_has_the_published_number_of_parameters(
    z_channels, ch_mult, attn_resolutions, published
):
    ddconfig = dict(
        double_z=True,
        z_channels=z_channels,
        resolution=256,
        in_channels=3,
        out_ch=3,
        ch=128,
        ch_mult=ch_mult,
        num_res_blocks=2,
        attn_resolutions=attn_resolutions,
        dropout=0.0,
    )
    model = KLAutoencoder(**options.autoencoder_kwargs(ddconfig, z_channels))
    assert _count(networks.autoencoder_shapes(model)) == published


@pytest.mark.parametrize(
    "changes, expected",
    [
        # Plain attention: channels of a head win over a number of heads.
        (dict(num_heads=4), dict(num_heads=4)),
        (dict(num_head_channels=16), dict(head_channels=16)),
        (dict(num_heads=4, num_head_channels=16), dict(head_channels=16)),
        (dict(num_heads=4, legacy=False), dict(num_heads=4)),
        # Going up, `num_heads_upsample` counts in legacy mode only.
        (
            dict(num_heads=4, num_heads_upsample=2),
            dict(num_heads=4, up_num_heads=(2, 2)),
        ),
        (dict(num_heads=4, num_heads_upsample=2, legacy=False), dict(num_heads=4)),
        (dict(num_head_channels=16, num_heads_upsample=2), dict(head_channels=16)),
        # Transformers: in legacy mode the heads always make up the level's width.
        (_transformer(8, num_heads=4), dict(num_heads=4)),
        (_transformer(8, num_head_channels=32), dict(head_channels=32)),
        (_transformer(8, num_head_channels=24), dict(head_channels=32)),
        (
            _transformer(8, num_head_channels=24, legacy=False),
            dict(num_heads=(1, 2), head_channels=(24, 24)),
        ),
        (
            _transformer(8, num_heads=5),
            dict(num_heads=(5, 5), head_channels=(6, 12)),
        ),
        (_transformer(8, num_heads=4, num_heads_upsample=2), dict(num_heads=4)),
    ],
)
def test_head_rules(changes, expected):
    config = _unet(32, channel_mult=[1, 2]) | changes
    kwargs = options.unet_kwargs(config)
    assert {k: v for k, v in kwargs.items() if "head" in k} == expected
    assert _count(networks.unet_shapes(config))


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(), "set num_heads or num_head_channels"),
        (dict(num_heads=4, dims=3), "dims=3"),
        (dict(num_heads=4, n_embed=8), "n_embed=8"),
        (dict(num_heads=4, context_dim=8), "both or neither"),
        (dict(num_heads=4, color="red"), "not supported: color"),
    ],
)
def test_options_that_cannot_be_had_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        options.unet_kwargs(_unet(32) | changes)


def test_attention_types_that_cannot_be_had_are_named():
    ddconfig = load_case("autoencoder_kl_f2").meta["config"]["ddconfig"]
    with pytest.raises(ValueError, match="attn_type='linear'"):
        options.autoencoder_kwargs(ddconfig | dict(attn_type="linear"), 4)


@pytest.mark.parametrize("name", UNET_CASES)
def test_unet_is_written_as_it_was_read(name):
    case = load_case(name)
    config = case.meta["config"]
    params, label = networks.convert_unet(case.state_dict, config)
    rows = names.unet_rows(
        UNet(**options.unet_kwargs(config)),
        head_major=not config.get("use_new_attention_order", False),
    )
    ours = {"backbone": params} | ({"label": label} if label else {})
    _assert_same(to_state_dict(rows, ours), case.state_dict)


def test_autoencoder_and_discriminator_are_written_as_they_were_read():
    case = load_case("autoencoder_kl_f4_attn")
    arguments = case.meta["config"]["ddconfig"], case.meta["config"]["embed_dim"]
    params = networks.convert_autoencoder(case.state_dict, *arguments)
    model = KLAutoencoder(**options.autoencoder_kwargs(*arguments))
    rows = names.autoencoder_rows(model)
    _assert_same(to_state_dict(rows, params), case.state_dict)

    case = load_case("patch_discriminator")
    variables = networks.convert_discriminator(case.state_dict, **case.meta["config"])
    rows = names.discriminator_rows()
    _assert_same(to_state_dict(rows, variables), case.state_dict)


def test_class_embedder_fills_class_label():
    table = np.random.default_rng(0).standard_normal((11, 16), np.float32)
    params = networks.convert_class_embedder({"embedding.weight": table})
    label = ClassLabel(num_classes=10, features=16)
    tokens = label.apply({"params": params}, np.array([3, 10]))
    np.testing.assert_array_equal(tokens[:, 0], table[[3, 10]])


def _assert_same(state_dict, expected):
    assert state_dict.keys() == expected.keys()
    for key, array in expected.items():
        np.testing.assert_array_equal(state_dict[key], array, err_msg=key)
