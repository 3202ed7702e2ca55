"""Measurements of streamed images: the same on any devices, in any batches."""

import jax
import numpy as np
import pytest

from ldm_jax import sharding
from ldm_jax.errors import ConfigError, DataError
from ldm_jax.metrics.measurement import Measurement

PICTURES = np.random.default_rng(0).integers(0, 256, (22, 16, 16, 3), np.uint8)


def _measure(pictures, devices=1, size=8, **options):
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    measured = Measurement(["frechet"], mesh, **options)
    _add(measured, pictures, mesh, size)
    return measured


def _add(measured, pictures, mesh, size):
    for start in range(0, len(pictures), size):
        rows = np.arange(start, start + size)
        batch = {"image": pictures[rows % len(pictures)], "mask": rows < len(pictures)}
        batch = sharding.put_batch(batch, mesh)
        measured.add(batch["image"], batch["mask"])


def _value(measured, against):
    (result,) = measured.results(against.statistics()).values()
    return result.value


def test_any_devices_and_batches_give_the_same_digits():
    against = _measure(PICTURES[:9])
    expected = _value(_measure(PICTURES), against)
    for devices, size in ((4, 8), (8, 8), (1, 22)):
        measured = _measure(PICTURES, devices, size)
        assert measured.count == 22
        assert _value(measured, against) == pytest.approx(expected, rel=1e-6)


def test_a_cut_measurement_goes_on_to_the_same_digits():
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    before, after = _measure(PICTURES[:8]), _measure(PICTURES[:0])
    after.restore(before.state())
    _add(after, PICTURES[8:], mesh, 8)
    whole = _measure(PICTURES)
    assert after.count == whole.count
    assert _value(after, before) == _value(whole, before)


def test_a_result_says_what_it_is():
    (name, result), *others = (
        _measure(PICTURES).results(_measure(PICTURES).statistics()).items()
    )
    assert name == result.label == "random-features distance (frechet)" and not others
    assert result.value < 1e-6 and result.count == 22
    assert result.note == "fewer images than the protocol's 50000"


class _Reference:
    """A reference of given statistics."""

    def __init__(self, taps, networks):
        self.taps, self.record = taps, {"networks": networks}


def test_a_reference_that_does_not_fit():
    made = _measure(PICTURES)
    taps, networks = made.statistics(), made.record
    assert _measure(PICTURES, reference=_Reference(taps, networks)).results()
    with pytest.raises(ConfigError, match="made with other weights of the network"):
        _measure(PICTURES, reference=_Reference(taps, {"random": {"checksum": "0"}}))
    with pytest.raises(ConfigError, match="needs the features random/pooled, which"):
        _measure(PICTURES, reference=_Reference({}, networks))
    with pytest.raises(ConfigError, match="compares with a reference: name one"):
        _measure(PICTURES).results()


def test_what_cannot_be_measured():
    measured = _measure(PICTURES[:1])
    with pytest.raises(DataError, match="two images or more, got 1"):
        measured.results(_measure(PICTURES).statistics())
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    with pytest.raises(ConfigError, match='distances="frechett" is unknown'):
        Measurement(["frechett"], mesh)
    with pytest.raises(DataError, match="the state of the evaluation has no random/po"):
        measured.restore({})
