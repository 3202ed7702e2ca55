"""Feature networks: the published numbers, the files of weights, the refusals."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from ldm_jax.errors import ConfigError, ConversionError
from ldm_jax.metrics.features import (
    FEATURES,
    clip_weights,
    dinov2,
    dinov2_weights,
    inception_weights,
    load_network,
    weights_of,
)
from ldm_jax.metrics.features.__main__ import _main
from ldm_jax.metrics.features.network import to_rgb
from ldm_jax.metrics.features.tensorflow_resize import tensorflow_resize
from ldm_jax.metrics.features.weight_files import checksum
from ldm_jax.weights.files import write_weights
from tests.common import assert_close, load_case, nhwc

INCEPTION_TAPS = tuple(FEATURES["inception"].widths)


@pytest.fixture(scope="module")
def case():
    return load_case("inception_v3_fid")


@pytest.fixture(scope="module")
def features_of():
    """The compiled network: its only program in these tests."""
    return jax.jit(FEATURES["inception"].apply, static_argnums=2)


def test_inception_gives_the_published_features(case, features_of, tmp_path):
    write_weights(tmp_path / "inception.pth", case.state_dict)
    network = load_network("inception", str(tmp_path / "inception.pth"))
    assert not network.is_random
    images = nhwc(case.arrays["x"])
    features = features_of(network.params, images, INCEPTION_TAPS)
    theirs = {"logits": "feat_logits_unbiased"}
    for tap, width in FEATURES["inception"].widths.items():
        assert features[tap].shape == (2, width)
        if tap != "spatial":
            assert_close(
                features[tap], case.arrays[theirs.get(tap, f"feat_{tap}")], 2e-6
            )


def test_inception_without_a_file_is_seeded_and_says_so(case, features_of):
    network = load_network("inception")
    assert network.is_random and network.record["weights"] == "random"
    # A change of these numbers would change every metric measured with them.
    assert network.record["checksum"] == "21bf223a6c3813c8"
    images = nhwc(case.arrays["x"])
    features = features_of(network.params, images, INCEPTION_TAPS)
    for tap, rows in features.items():
        assert np.isfinite(rows).all() and 0.1 < np.std(rows) < 10, tap
        assert np.abs(rows[0] - rows[1]).max() > 0.01, tap


def test_a_converted_file_has_the_checksum_of_the_published_one(case, tmp_path):
    write_weights(tmp_path / "a.pth", case.state_dict)
    published = inception_weights.read_inception(str(tmp_path / "a.pth"))
    save_file(published, tmp_path / "b.safetensors")
    converted = inception_weights.read_inception(str(tmp_path / "b.safetensors"))
    assert checksum(published) == checksum(converted)
    converted["fc.bias"] = converted["fc.bias"] + 1e-6
    assert checksum(published) != checksum(converted)


def test_another_network_is_refused_in_one_line(case, tmp_path):
    path = str(tmp_path / "weights.safetensors")
    with pytest.raises(ConversionError, match=r"there is no file .*pytorch-fid"):
        load_network("inception", path)
    small = {"fc.weight": np.zeros((1000, 2048), np.float32)}
    for tensors, word in (
        (small, "lacks Conv2d_1a_3x3"),
        (small | {"AuxLogits.fc.weight": small["fc.weight"]}, "torchvision"),
        (dict(case.state_dict, more=np.zeros(1, np.float32)), "has more"),
        (dict(case.state_dict) | small, r"fc.weight of shape \(1000, 2048\)"),
    ):
        save_file(tensors, path)
        with pytest.raises(ConversionError, match=word) as caught:
            load_network("inception", path)
        assert "\n" not in str(caught.value)


def test_dinov2_gives_the_published_features(tmp_path):
    """Positions of 518 pixels, names of transformers, images of another size."""
    case = load_case("dinov2")
    save_file(case.state_dict, tmp_path / "model.safetensors")
    tensors = dinov2_weights.read_dinov2(str(tmp_path / "model.safetensors"))
    network = dinov2.DinoV2(**case.meta["config"])
    params = dinov2_weights.make_params(tensors, network)
    images = dinov2.prepare(nhwc(case.arrays["images"]))
    features = jax.jit(network.apply)({"params": params}, images)
    assert_close(features, case.arrays["class_token"])


def test_dinov2_of_another_kind_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="=dinov2=FILE .*dinov2_vitl14"):
        load_network("dinov2")
    weights = dict(load_case("dinov2").state_dict)
    path = str(tmp_path / "model.safetensors")
    registers = {"embeddings.register_tokens": np.zeros((1, 4, 128), np.float32)}
    for tensors, word in (
        (weights, r"\(128, 2\) instead of \(1024, 24\)"),
        (weights | registers, "with registers"),
        (registers, "with registers|no DINOv2"),
        ({"a": np.zeros(1, np.float32)}, "no DINOv2"),
    ):
        save_file(tensors, path)
        with pytest.raises(ConversionError, match=word) as caught:
            load_network("dinov2", path)
        assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def clip_case():
    return load_case("open_clip")


def test_clip_embeds_images_and_captions_as_published(clip_case, tmp_path, monkeypatch):
    tensors = dict(clip_case.state_dict)
    # OpenAI's files say their sizes, and so that their activation is another.
    openai = tensors | {"input_resolution": np.array(28), "vocab_size": np.array(100)}
    write_weights(tmp_path / "ViT.pt", openai)
    network = load_network("clip", str(tmp_path / "ViT.pt"))
    assert network.row.widths == {"embedding": 24} and not network.is_random
    assert network.row.vocab_size == 100
    images = nhwc(clip_case.arrays["images"])
    apply = jax.jit(network.row.apply, static_argnums=2)
    embedded = apply(network.params, images, ("embedding",))["embedding"]
    assert_close(embedded, clip_case.arrays["image_embedding"])
    texts = jax.jit(network.row.embed_text)(network.params, clip_case.arrays["ids"])
    assert_close(texts, clip_case.arrays["text_embedding"])
    # The same numbers with the other activation are another network.
    write_weights(tmp_path / "open_clip.safetensors", tensors)
    other = load_network("clip", str(tmp_path / "open_clip.safetensors"))
    assert other.record["checksum"] != network.record["checksum"]
    beside = tmp_path / "open_clip_config.json"
    beside.write_text(json.dumps({"model_cfg": {"quick_gelu": True}}))
    monkeypatch.setenv("HOME", str(tmp_path))
    other = load_network("clip", "~/open_clip.safetensors")
    assert other.record["checksum"] == network.record["checksum"]


def test_clip_is_converted_to_the_names_of_openai(clip_case, tmp_path):
    write_weights(tmp_path / "a.safetensors", clip_case.state_dict)
    converted = clip_weights.convert_clip(str(tmp_path / "a.safetensors"))
    theirs = dict(clip_case.state_dict)
    theirs.pop("logit_scale")
    assert converted.keys() == theirs.keys()
    for key, array in theirs.items():
        np.testing.assert_array_equal(converted[key], array, err_msg=key)


def test_a_clip_of_images_alone(clip_case, tmp_path):
    tensors = clip_case.state_dict.items()
    visual = {k: v for k, v in tensors if k.startswith("visual.")}
    write_weights(tmp_path / "a.safetensors", visual)
    network = load_network("clip", str(tmp_path / "a.safetensors"))
    assert network.row.embed_text is None


def test_the_command_converts_and_says_the_checksum(clip_case, tmp_path, capsys):
    source, target = str(tmp_path / "a.pt"), str(tmp_path / "b.safetensors")
    write_weights(source, clip_case.state_dict)
    _main(["features", "clip", source, target])
    checksum = load_network("clip", source).record["checksum"]
    assert capsys.readouterr().out == f"{target}: CLIP, checksum {checksum}\n"
    for arguments, word in (
        (["clip", source], "give the name"),
        (["random", source, target], "unknown"),
        (["clip", source, source], "safetensors"),
    ):
        with pytest.raises(ConfigError, match=word):
            _main(["features", *arguments])


def test_the_command_writes_nothing_of_another_network(tmp_path):
    source, target = tmp_path / "model.safetensors", tmp_path / "b.safetensors"
    save_file(dict(load_case("dinov2").state_dict), source)
    with pytest.raises(ConversionError, match="instead of"):
        _main(["features", "dinov2", str(source), str(target)])
    assert not target.exists()


def test_the_network_of_pytorch_fid_has_the_file_of_inception():
    weights = {"inception": "a.pth", "clip": None}
    assert weights_of("inception_pytorch_fid", weights) == "a.pth"
    own = weights | {"inception_pytorch_fid": "b.pth"}
    assert weights_of("inception_pytorch_fid", own) == "b.pth"
    assert weights_of("clip", weights) is weights_of("random", weights) is None


def test_clip_of_another_kind_is_refused(clip_case, tmp_path):
    with pytest.raises(ConfigError, match=r"=clip=FILE .*ViT-L-14\.pt"):
        load_network("clip")
    path = str(tmp_path / "model.safetensors")
    weights = {k: np.asarray(v) for k, v in clip_case.state_dict.items()}
    resnet = {"visual.layer1.0.conv1.weight": np.zeros((1, 1), np.float32)}
    for tensors, word in (
        (resnet, "no vision transformer"),
        (weights | {"more": np.zeros(1, np.float32)}, "nothing reads: more"),
    ):
        save_file(tensors, path)
        with pytest.raises(ConversionError, match=word) as caught:
            load_network("clip", path)
        assert "\n" not in str(caught.value)


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="unknown"):
        load_network("inceptoin")
    with pytest.raises(ConfigError, match="no file"):
        load_network("random", "weights.pth")
    with pytest.raises(ConfigError, match="1 or 3 channels, got 4"):
        to_rgb(np.zeros((1, 8, 8, 4), np.uint8))


def test_the_resize_is_that_of_tensorflow_1():
    rows = np.array([0, 10, 30], np.uint8)
    images = np.broadcast_to(rows[None, :, None, None], (1, 3, 2, 1))
    # New row i is read at i * 3 / 5; behind the last row there is nothing.
    expected = [0, 6, 14, 26, 30]
    resized = np.asarray(tensorflow_resize(images, 5, 2))
    np.testing.assert_allclose(resized[0, :, 0, 0], expected, rtol=1e-6)
    assert (tensorflow_resize(images, 3, 2) == images).all()


def test_pytorch_fid_resizes_between_centres_of_pixels():
    rows = np.array([0, 10, 30], np.uint8)
    images = np.broadcast_to(rows[None, :, None, None], (1, 3, 2, 3))
    prepared = inception_weights._as_pytorch_fid(images.astype(np.float32))
    prepared = np.asarray(prepared)
    assert prepared.shape == (1, 299, 299, 3)
    places = (np.arange(299) + 0.5) * 3 / 299 - 0.5
    expected = 2 * np.interp(places, range(3), rows) / 255 - 1
    np.testing.assert_allclose(prepared[0, :, 7, 1], expected, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_random_features_are_one_vector_per_image(channels):
    network = load_network("random")
    assert network.is_random
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 24, channels), np.uint8)
    apply = jax.jit(network.row.apply, static_argnums=2)
    ((tap, width),) = network.row.widths.items()
    features = apply(network.params, images, (tap,))[tap]
    assert features.shape == (3, width) and features.dtype == np.float32
    assert np.isfinite(features).all()
    alone = apply(load_network("random").params, images[1:2], (tap,))[tap]
    np.testing.assert_allclose(alone[0], features[1], atol=1e-5)
