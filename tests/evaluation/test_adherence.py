"""Condition adherence: the measures, the probe, restoration, a model end to end."""

import json

import jax
import numpy as np
import pytest

from ldm_jax.data.shapes import examples
from ldm_jax.errors import ConfigError
from ldm_jax.evaluation.shapes import measure, probe, restoration
from ldm_jax.evaluation.shapes.adherence import ADHERENCE, adherence, chance
from ldm_jax.evaluation.shapes.labels import COLORS, stack, truth
from ldm_jax.images import to_float
from ldm_jax.models.autoencoder import IdentityAutoencoder
from tests.sampling.common import make_trained

SIZE = 16


@pytest.fixture(scope="module")
def scenes():
    return probe.draw_scenes(160, 32)


def seen_as_they_are(true):
    """The predictions of a probe that makes no errors."""
    count, segmentation = len(true["label"]), true["segmentation"]
    colors = true["colors"][np.arange(count)[:, None, None], segmentation]
    seen = {key: true[key].copy() for key in ("label", "color", "pattern")}
    seen |= {"segmentation": segmentation.copy(), "colors": np.maximum(colors, 0)}
    return seen | {"ground": true["grounds"].argmax(1)}


def test_scenes_adhere_to_themselves(scenes):
    found = adherence(scenes, seen_as_they_are(scenes))
    assert found == dict.fromkeys(ADHERENCE, 1.0)


@pytest.mark.parametrize("key", ["label", "color", "pattern", "ground"])
def test_what_is_wrong_of_the_whole_lowers_its_own_row(scenes, key):
    seen = seen_as_they_are(scenes)
    seen[key][::4] = (seen[key][::4] + 3) % 5
    wrong = {"label": "class"}.get(key, key)
    found = adherence(scenes, seen)
    assert 0.7 < found.pop(wrong) < 0.85
    assert set(found.values()) == {1.0}


def test_a_shape_that_is_missing_or_in_excess_is_no_adherence(scenes):
    true = {key: value[:1] for key, value in scenes.items()}
    kind = int(true["label"][0]) + 1
    missing, excess = seen_as_they_are(true), seen_as_they_are(true)
    missing["segmentation"][missing["segmentation"] == kind] = 0
    other = int(np.flatnonzero(true["colors"][0] < 0)[-1])
    excess["segmentation"][0, :3, :3] = other
    count = int(np.sum(true["colors"] >= 0))
    assert adherence(true, excess)["shapes"] == pytest.approx(
        2 * count / (2 * count + 1)
    )
    found = adherence(true, missing)
    assert found["shapes"] == pytest.approx(2 * (count - 1) / (2 * count - 1))
    assert found["box_iou"] == pytest.approx((count - 1) / count)
    assert found["foreground_iou"] < 0.5


def test_colors_count_by_shape(scenes):
    seen = seen_as_they_are(scenes)
    seen["colors"] = (seen["colors"] + 1) % len(COLORS)
    found = adherence(scenes, seen)
    assert found["shapes"] == 1 and found["colored_shapes"] == 0


def test_chance_is_what_shuffled_scenes_give(scenes):
    found = chance(scenes, seen_as_they_are(scenes))
    assert 0.08 < found["class"] < 0.18 and 0.06 < found["color"] < 0.15
    assert found["pixels"] < 0.8 and found["box_iou"] < 0.15


def test_other_data_are_refused():
    example = examples.draw_example(0, "train", 0, SIZE)
    with pytest.raises(ConfigError, match="the data has no caption, boxes"):
        truth({k: v for k, v in example.items() if k not in ("caption", "boxes")})
    with pytest.raises(ConfigError, match="is not a caption of the data set"):
        truth(example | {"caption": "a cat"})


def test_a_probe_learns_and_is_kept(tmp_path, capsys):
    sizes = dict(module=probe.Probe((16, 24)), num_steps=100, num_scenes=256)
    load = lambda: probe.load_probe(tmp_path, IdentityAutoencoder(), {}, SIZE, **sizes)  # noqa: E731
    first = load()
    held_out = probe.draw_scenes(200, SIZE, seed=5)
    seen = first(held_out["image"])
    assert {key: value.shape for key, value in seen.items()} == {
        **dict.fromkeys(("label", "color", "ground", "pattern"), (200,)),
        **dict.fromkeys(("segmentation", "colors"), (200, SIZE, SIZE)),
    }
    found, blind = adherence(held_out, seen), chance(held_out, seen)
    assert found["color"] > 3 * blind["color"]
    assert "training one" in capsys.readouterr().out
    again = load()(held_out["image"][:7])
    assert "training" not in capsys.readouterr().out
    for key, value in again.items():
        np.testing.assert_array_equal(value, seen[key][:7])


def test_a_probe_needs_sizes_that_it_can_halve(tmp_path):
    with pytest.raises(ConfigError, match="cannot take images of 30 px"):
        probe.load_probe(tmp_path, IdentityAutoencoder(), {}, 30)


def test_loss_is_least_for_the_truth(scenes):
    true = {key: value[:8] for key, value in scenes.items()}
    seen = seen_as_they_are(true)
    counts = dict(label=8, color=10, ground=11, pattern=5, segmentation=9, colors=10)
    logits = {key: 50.0 * np.eye(counts[key])[value] for key, value in seen.items()}
    # Of two grounds either is right, so half is as sure as one can be.
    logits["ground"] = 50.0 * true["grounds"]
    entropy = np.mean(np.log(true["grounds"].sum(1)))
    assert probe.loss(logits, true) == pytest.approx(entropy, abs=1e-4)
    for key in logits:
        worse = logits | {key: np.roll(logits[key], 1, axis=-1)}
        assert probe.loss(worse, true) > entropy + 1


def test_baselines_keep_what_is_known():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)
    mask = np.zeros((3, SIZE, SIZE, 1), np.float32)
    mask[:, 2:9, 4:] = 1
    masked = np.where(mask > 0, np.float32(-1), to_float(images))
    filled = restoration.baseline(
        {"masked_image": np.concatenate([masked, mask], axis=-1)}, SIZE
    )
    known = mask[..., 0] == 0
    np.testing.assert_array_equal(filled[known], images[known])
    np.testing.assert_allclose(
        filled[0][~known[0]], np.tile(images[0][known[0]].mean(0), (84, 1)), atol=1
    )
    flat = np.full((2, 4, 4, 3), 0.25, np.float32)
    large = restoration.baseline({"low_res": flat}, SIZE)
    assert large.shape == (2, SIZE, SIZE, 3) and np.ptp(large) == 0
    assert restoration.baseline({"label": np.zeros(3)}, SIZE) is None


@pytest.fixture
def one_device(monkeypatch):
    devices = jax.local_devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)


def test_a_model_is_measured_from_end_to_end(one_device, shapes_dir):
    model = make_trained("masked_image", data_dir=str(shapes_dir))
    seen = []

    def watch(images):
        """Predicts the labels of the held-out scenes, whatever the images."""
        seen.append(images)
        return seen_as_they_are(true)

    scenes = [examples.draw_example(0, "validation", k, 32) for k in range(5)]
    true = stack([truth(scene) for scene in scenes])
    small = true["segmentation"][:, 1::2, 1::2]
    true |= {"segmentation": small}
    record, grid = measure.measure(model, watch, 5, batch_size=3)
    json.dumps(record)
    assert record["num_samples"] == 5 and record["options"]["num_steps"] == 2
    assert grid.dtype == np.uint8
    assert list(record["adherence"]) == [
        *("real", "reconstructed", "samples", "unconditional", "chance")
    ]
    assert record["adherence"]["real"]["class"] == 1.0
    real, again, samples, unconditional = seen
    np.testing.assert_array_equal(real, again)  # There is no first stage.
    assert np.any(samples != unconditional)
    restored = record["restoration"]
    assert list(restored) == ["baseline", "reconstructed", "samples", "unconditional"]
    assert restored["reconstructed"]["psnr"] == 100
    # The known part stays, without the condition as well.
    assert np.mean(samples == real) > 0.3 and np.mean(unconditional == real) > 0.3


def test_there_must_be_a_condition(shapes_dir):
    model = make_trained(scale=0, data_dir=str(shapes_dir))
    with pytest.raises(ConfigError, match="there is nothing to adhere to"):
        measure.measure(model, None, 4)
