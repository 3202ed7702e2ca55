"""Measurements of streamed images: the same on any devices, in any batches."""

import jax
import numpy as np
import pytest

from ldm_jax import sharding
from ldm_jax.errors import ConfigError, DataError
from ldm_jax.metrics.features import FEATURES, FeatureNetwork, Loaded
from ldm_jax.metrics.measurement import Measurement
from ldm_jax.metrics.reference import ReferenceStatistics
from ldm_jax.metrics.set_metrics import SET_METRICS

PICTURES = np.random.default_rng(0).integers(0, 256, (22, 16, 16, 3), np.uint8)


# Of the cheap network, whatever they are of elsewhere.
CHEAP = ("frechet", "kid", "precision_recall")


@pytest.fixture(autouse=True)
def cheap_distances(monkeypatch):
    for name in CHEAP:
        row = SET_METRICS[name]._replace(network="random", tap="pooled")
        monkeypatch.setitem(SET_METRICS, name, row)


def _measure(pictures, devices=1, size=8, names=("frechet",), **options):
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    measured = Measurement(names, mesh, **options)
    _add(measured, pictures, mesh, size)
    return measured


def _add(measured, pictures, mesh, size):
    for start in range(0, len(pictures), size):
        rows = np.arange(start, start + size)
        batch = {"image": pictures[rows % len(pictures)], "mask": rows < len(pictures)}
        batch = sharding.put_batch(batch, mesh)
        measured.add(batch["image"], batch["mask"])


def _values(measured, against):
    measured.compare_with(against.as_reference())
    results = measured.results()
    return {name: result.value for name, result in results.items()}


def test_any_devices_and_batches_give_the_same_digits():
    against = _measure(PICTURES[:9], names=CHEAP)
    expected = _values(_measure(PICTURES, names=CHEAP), against)
    assert len(expected) == 4
    for devices, size in ((4, 8), (8, 8), (1, 22)):
        measured = _measure(PICTURES, devices, size, names=CHEAP)
        assert measured.count == 22
        assert _values(measured, against) == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_a_cut_measurement_goes_on_to_the_same_digits():
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    before, after = (_measure(PICTURES[:n], names=CHEAP) for n in (8, 0))
    after.restore(before.state())
    _add(after, PICTURES[8:], mesh, 8)
    whole = _measure(PICTURES, names=CHEAP)
    assert after.count == whole.count
    assert _values(after, before) == _values(whole, before)


def test_a_result_says_what_it_is():
    reference = _measure(PICTURES).as_reference()
    measured = _measure(PICTURES, reference=reference)
    (name, result), *others = measured.results().items()
    assert name == result.label == "random-features distance (frechet)" and not others
    assert result.value < 1e-6 and result.count == 22
    few = "no more images than the 256 features"
    assert result.note == f"{few}; fewer images than the protocol's 50000"
    measured = _measure(PICTURES, reference=reference, protocol=22)
    assert measured.results()[name].note == few
    record = dict(reference.record) | {"note": "of a file"}
    measured.compare_with(ReferenceStatistics(reference.taps, record))
    assert measured.results()[name].note == f"{few}; of a file"


def _reference(taps, networks):
    return ReferenceStatistics(taps, {"name": "photos", "networks": networks})


def test_a_reference_that_does_not_fit():
    made = _measure(PICTURES)
    taps, networks = made.statistics(), made.record
    assert _measure(PICTURES, reference=_reference(taps, networks)).results()
    with pytest.raises(ConfigError, match="photos was made with other weights of ran"):
        others = {"random": networks["random"] | {"checksum": "0"}}
        _measure(PICTURES, reference=_reference(taps, others))
    with pytest.raises(ConfigError, match="needs the features random/pooled, which"):
        _measure(PICTURES, reference=_reference({}, networks))
    with pytest.raises(ConfigError, match="kid needs the features of each image"):
        _measure(PICTURES, names=["kid"], reference=_reference(taps, networks))
    with pytest.raises(ConfigError, match="compares with a reference: name one"):
        _measure(PICTURES).results()


def test_what_cannot_be_measured():
    measured = _measure(PICTURES[:1])
    with pytest.raises(DataError, match="two images or more, got 1"):
        measured.results()
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    with pytest.raises(ConfigError, match='metrics="frechett" is unknown'):
        Measurement(["frechett"], mesh)
    with pytest.raises(DataError, match="the state of the evaluation has no random/po"):
        measured.restore({})


def _network(apply, embed_text=None):
    """A network without weights."""
    return FeatureNetwork("", "", {"embedding": 3}, _load, apply, embed_text)


def _load(path):
    return Loaded({}, "")


def test_features_that_are_not_finite(monkeypatch):
    def apply(params, images, taps):
        return {"embedding": 1 / (images[:, 0, 0].astype("float32") - 7)}

    monkeypatch.setitem(FEATURES, "bad", _network(apply))
    row = SET_METRICS["frechet"]._replace(network="bad", tap="embedding")
    monkeypatch.setitem(SET_METRICS, "frechet", row)
    pictures = np.zeros((8, 4, 4, 3), np.uint8)
    assert _measure(pictures).count == 8
    # Rows that do not count may be anything.
    pictures[6] = 7
    assert _measure(pictures[:6]).count == 6
    with pytest.raises(DataError, match="features of 1 of 8 images are not finite"):
        assert _measure(pictures).count


def test_clip_score_of_images_and_their_captions(monkeypatch):
    def apply(params, images, taps):
        return {tap: images[:, 0, 0].astype("float32") for tap in taps}

    def embed_text(params, captions):
        return captions.astype("float32")

    monkeypatch.setitem(FEATURES, "clip", _network(apply, embed_text))
    mesh = sharding.make_mesh(devices=jax.devices()[:4])
    weights = {"clip": "of_images_alone"}
    measured = Measurement(["clip_score"], mesh, weights)
    images = np.zeros((4, 2, 2, 3), np.uint8)
    images[:, 0, 0] = [[3, 4, 0], [1, 0, 0], [0, 0, 9], [1, 1, 1]]
    captions = np.int32([[1, 0, 0], [2, 0, 0], [1, 1, 0], [1, 1, 1]])
    mask = np.array([True, True, True, False])
    batch = {"image": images, "mask": mask, "captions": captions}
    batch = sharding.put_batch(batch, mesh)
    with pytest.raises(ConfigError, match="and these have none"):
        measured.add(batch["image"], batch["mask"])
    measured.add(batch["image"], batch["mask"], batch["captions"])
    result = measured.results()["clip_score"]
    assert result.value == pytest.approx((60 + 100) / 3, rel=1e-6)
    assert result.count == 3 and result.label == "CLIP score"
    small = _network(apply, embed_text)._replace(vocab_size=2)
    monkeypatch.setitem(FEATURES, "clip", small)
    with pytest.raises(ConfigError, match="the id 2, but .* knows 2"):
        Measurement(["clip_score"], mesh, weights).add(*batch.values())
    monkeypatch.setitem(FEATURES, "clip", _network(apply))
    with pytest.raises(ConfigError, match="which of_images_alone .* does not have"):
        Measurement(["clip_score"], mesh, weights)
