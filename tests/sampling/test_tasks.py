"""Tasks end to end on models of random weights: conditions, inpainting, records."""

import json

import jax
import numpy as np
import pytest

from ldm_jax.data.open_source import open_source
from ldm_jax.data.shapes.scenes import CLASS_NAMES
from ldm_jax.data.transforms import transform
from ldm_jax.errors import ConfigError
from ldm_jax.generate import known_latents_mask, slerp
from ldm_jax.images import decode_plane, read_image
from ldm_jax.models.classifier import Classifier
from ldm_jax.sampling.conditions import make_batch
from ldm_jax.sampling.task import make_task
from ldm_jax.trained import TrainedClassifier
from ldm_jax.training.held_out.shown_conditions import show_conditions
from tests.common import random_variables
from tests.sampling.common import (
    SIZE,
    make_trained,
    options_of,
    picture,
    run,
    write_image,
)


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    devices = jax.local_devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)


def samples(folder):
    paths = sorted((folder / "samples").iterdir())
    return np.stack([read_image(path) for path in paths])


def arrays(folder):
    with np.load(folder / "samples.npz") as file:
        return {key: file[key] for key in file.files}


def test_conditions_name_where_they_come_from(shapes_dir, tmp_path, monkeypatch):
    model = make_trained("label", "segmentation", data_dir=str(shapes_dir))
    task = make_task(model, {}, *options_of(model, from_data=True))
    with monkeypatch.context() as patch:
        map_of = {"segmentation": np.full((SIZE, SIZE, 1), 200, np.uint8)}
        opened, read = type(task.source), type(task.source).__getitem__
        patch.setattr(opened, "__getitem__", lambda s, k: read(s, k) | map_of)
        with pytest.raises(ConfigError) as error:
            make_batch(model, task, 0, [0])
    start = (
        "sample 0 (shapes/32/1.0.0 validation example 0): condition 'segmentation': "
    )
    assert str(error.value).startswith(start + "label 200 is out of range")

    path = write_image(tmp_path / "map.png", np.full((SIZE, SIZE), 9, np.uint8))
    task = make_task(model, {"segmentation": [path]}, *options_of(model))
    with pytest.raises(ConfigError) as error:
        make_batch(model, task, 0, [1])
    start = f"sample 1 ({path}): condition 'segmentation': label 9 is out of range"
    assert str(error.value).startswith(start)


def test_classes_that_have_changed_are_not_told_from_data(shapes_dir):
    model = make_trained("label", data_dir=str(shapes_dir))
    renamed = model._replace(class_names=["ring", *CLASS_NAMES[1:]])
    message = f"class 0 is {CLASS_NAMES[0]}, was ring; bring those back"
    with pytest.raises(ConfigError, match=message):
        make_task(renamed, {}, *options_of(renamed, from_data=True))


def test_every_condition_is_told_from_flags_and_from_data(shapes_dir, tmp_path):
    keys = ("label", "caption", "boxes", "segmentation", "depth", "low_res", "style")
    model = make_trained(*keys, data_dir=str(shapes_dir))
    scales = {"caption": 3.0, "label": 1.5}
    options = dict(num_samples=3, batch_size=3, npz=True, guidance_scale=scales)
    given = {"negative_prompt": ["a blue ring"]}
    run(model, tmp_path / "data", given, from_data=True, **options)
    told = arrays(tmp_path / "data")
    assert told["arr_0"].shape == (3, SIZE, SIZE, 3)
    source = open_source(model.config.data, "validation")
    examples = [transform(source[k], SIZE) for k in range(3)]
    for key in ("label", "caption", "segmentation", "depth", "boxes", "box_labels"):
        np.testing.assert_array_equal(told[key], np.stack([e[key] for e in examples]))
    np.testing.assert_array_equal(told["reference"], [e["image"] for e in examples])
    reference = read_image(tmp_path / "data" / "reference" / "000002.png")
    np.testing.assert_array_equal(reference, examples[2]["image"])
    assert (tmp_path / "data" / "sheet.png").exists()

    batch = {key: jax.numpy.asarray(told[f"input_{key}"]) for key in keys[1:]}
    batch["image"] = jax.numpy.asarray(told["reference"])
    shown = show_conditions(model.config.data, batch, 2, CLASS_NAMES)
    drawn = ("boxes", "segmentation", "depth", "low_res", "style")
    assert shown.keys() == {f"condition_{key}" for key in drawn}
    assert all(pictures.shape == (2, 128, 128, 3) for pictures in shown.values())

    # The same by flags gives the same, to the bit.
    given |= {"labels": [str(e["label"]) for e in examples]}
    given |= {"prompt": [e["caption"] for e in examples]}
    for k in range(3):
        raw = source[k]
        layout = [
            {"label": int(label), "box": np.asarray(box).tolist()}
            for label, box in zip(raw["box_labels"], raw["boxes"], strict=True)
        ]
        path = tmp_path / "layout" / f"{k}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(layout))
        write_image(tmp_path / "image" / f"{k}.png", examples[k]["image"])
        for flag in ("segmentation", "depth"):
            write_image(tmp_path / flag / f"{k}.png", decode_plane(raw[flag]))
    given |= {flag: [str(tmp_path / flag)] for flag in ("layout", *keys[3:5], "image")}
    run(model, tmp_path / "flags", given, **options)
    np.testing.assert_array_equal(
        samples(tmp_path / "flags"), samples(tmp_path / "data")
    )


def test_a_hole_is_filled_and_the_rest_is_kept(tmp_path):
    hole = np.zeros((SIZE, SIZE), np.uint8)
    hole[4:9, 3:12] = 255
    given = {
        "image": [write_image(tmp_path / "image.png", picture(1, 20, 16))],
        "mask": [write_image(tmp_path / "mask.png", np.pad(hole, ((2, 2), (0, 0))))],
    }
    known = hole == 0
    for keys in (("masked_image",), ()):
        folder = tmp_path / f"{len(keys)}"
        model = make_trained(*keys)
        run(model, folder, given, num_samples=2, npz=True, guidance_scale=1.0)
        images = samples(folder)
        for image in images:
            np.testing.assert_array_equal(image[known], picture(1, 20, 16)[2:-2][known])
        assert (images[0] != images[1]).any()
        assert arrays(folder)["mask"][0, ..., 0].tolist() == (~known).tolist()
        assert (folder / "sheet.png").exists()


def test_strength_zero_gives_the_image_back(tmp_path):
    image = picture(2, 24, SIZE)
    given = {"image": [write_image(tmp_path / "image.png", image)]}
    model = make_trained()
    size = (24, SIZE)
    run(model, tmp_path / "out", given, num_samples=1, size=size, strength=0.0)
    np.testing.assert_array_equal(samples(tmp_path / "out")[0], image)


def test_inverted_noise_leads_back_and_a_path_between_two_images(tmp_path):
    # Weak weights: what is inverted in few steps is inverted well.
    model = make_trained(scale=0.06)
    smooth = [np.full((SIZE, SIZE, 3), value, np.uint8) for value in (60, 190)]
    files = [write_image(tmp_path / f"{k}.png", x) for k, x in enumerate(smooth)]
    run(
        model,
        tmp_path / "out",
        {"image": files},
        num_samples=3,
        invert=True,
        interpolate=(0, 1),
        num_steps=20,
    )
    first, middle, last = samples(tmp_path / "out").astype(int)
    assert np.abs(first - 60).mean() < 12 and np.abs(last - 190).mean() < 12
    assert 60 < middle.mean() < 190


def test_a_path_begins_and_ends_at_two_samples(tmp_path):
    model = make_trained()
    options = dict(size=(SIZE, 24), tile=SIZE)
    run(model, tmp_path / "all", num_samples=6, **options)
    run(model, tmp_path / "path", num_samples=5, interpolate=(4, 2), **options)
    drawn, path = samples(tmp_path / "all"), samples(tmp_path / "path").astype(int)
    assert np.abs(path[0] - drawn[4]).max() <= 1
    assert np.abs(path[-1] - drawn[2]).max() <= 1
    steps = np.abs(np.diff(path, axis=0)).mean(axis=(1, 2, 3))
    direct = np.abs(path[0] - path[-1]).mean()
    assert (steps > 0).all() and (steps < direct).all()


def test_a_guide_and_a_classifier_steer(tmp_path):
    model = make_trained(scale=0.02)
    guide = np.full((SIZE, SIZE, 3), (230, 30, 120), np.uint8)
    given = {"guide_image": [write_image(tmp_path / "guide.png", guide)]}
    given["labels"] = ["ring", "star"]
    network = Classifier(
        channels=16,
        out_channels=len(CLASS_NAMES),
        channel_mult=(1,),
        num_res_blocks=1,
        attention_factors=(),
        norm_groups=8,
        num_heads=1,
        pool="adaptive",
    )
    inputs = np.zeros((1, SIZE, SIZE, 3)), np.zeros(1)
    weights = random_variables(network, *inputs, scale=0.02)["params"]
    classifier = TrainedClassifier(network, weights, list(CLASS_NAMES), "random")
    steered = model._replace(classifier=classifier)
    options = dict(num_samples=2, num_steps=8)
    run(model, tmp_path / "plain", **options)
    run(steered, tmp_path / "guided", given, guide_scale=30.0, **options)
    far, near = (
        np.abs(samples(tmp_path / name).mean(axis=(1, 2)) - guide[0, 0]).mean()
        for name in ("plain", "guided")
    )
    assert near < 0.7 * far
    settings = json.loads((tmp_path / "guided" / "settings.json").read_text())
    assert settings["conditions"]["steering"] == {"classifier": 10.0, "guide": 30.0}
    with pytest.raises(ConfigError, match="--classifier_scale needs --classifier"):
        run(model, tmp_path / "wrong", classifier_scale=2.0)
    with pytest.raises(ConfigError, match="--guide_scale needs --guide_image"):
        run(model, tmp_path / "wrong", guide_scale=2.0)


def test_latents_are_known_where_every_pixel_is():
    mask = np.zeros((1, 4, 6, 1), bool)
    mask[0, 1, 2] = True
    known = np.asarray(known_latents_mask(jax.numpy.asarray(mask), 2))[0, ..., 0]
    assert known.tolist() == [[1, 0, 1], [1, 1, 1]]


def test_interpolated_noise_keeps_its_variance():
    rng = np.random.default_rng(0)
    first, last = rng.normal(size=(2, 3, 16, 16, 4)).astype(np.float32)
    share = np.array([0.0, 0.5, 1.0], np.float32)
    between = np.asarray(slerp(first, last, share))
    np.testing.assert_allclose(between[0], first[0], atol=1e-5)
    np.testing.assert_allclose(between[2], last[2], atol=1e-5)
    assert between[1].std() == pytest.approx(1, abs=0.05)
    np.testing.assert_allclose(slerp(first, first, share), first, atol=1e-5)
