"""Files of reference statistics: ours and others', and what does not go together."""

import contextlib

import numpy as np
import pytest

from ldm_jax.errors import ConfigError
from ldm_jax.images.value_ranges import WHOLE_RANGE, whole_range_of, words_of
from ldm_jax.metrics.reference import ReferenceStatistics
from ldm_jax.metrics.statistics import TapStatistics

NETWORK = {"network": "inception", "weights": "w.pth", "checksum": "ab"}
CUT = {"size": [16, 16], "crop": "center", "resize": "bicubic"}
RECORD = {
    "name": "photos",
    "count": 3,
    "images": "1f",
    "preprocessing": CUT,
    "networks": {"inception": NETWORK},
}


def statistics(width, rows=False):
    rng = np.random.default_rng(width)
    values = rng.normal(size=(3, width)).astype(np.float32)
    covariance = np.cov(values, rowvar=False)
    return TapStatistics(3, values.mean(axis=0), covariance, values if rows else None)


def assert_same(first, second):
    assert first.count == second.count
    for name in ("mean", "covariance", "rows"):
        one, other = getattr(first, name), getattr(second, name)
        assert (one is None) == (other is None)
        if one is not None:
            np.testing.assert_array_equal(np.asarray(other, one.dtype), one)


def test_a_file_holds_what_was_measured(tmp_path):
    taps = {"inception/64": statistics(4, rows=True), "random/pooled": statistics(3)}
    random = {"network": "random", "weights": "random", "checksum": "cd"}
    record = RECORD | {"networks": {"inception": NETWORK, "random": random}}
    path = tmp_path / "there" / "reference.npz"
    ReferenceStatistics(taps, record).save(path)
    found = ReferenceStatistics.load(path)
    assert found.record == record and found.taps.keys() == taps.keys()
    for tap in taps:
        assert_same(taps[tap], found.taps[tap])
    # Features of each image are large: none are read that no metric needs.
    assert found.rows == {"inception/64": 3}
    found = ReferenceStatistics.load(path, rows=["random/pooled"])
    assert not found.rows and found.taps.keys() == taps.keys()


@pytest.mark.parametrize("weights", ["w.pth", "random"])
def test_other_evaluators_read_what_is_of_the_published_network(tmp_path, weights):
    taps = {"inception/2048": statistics(2048)}
    network = NETWORK | {"weights": weights}
    record = RECORD | {"networks": {"inception": network}}
    ReferenceStatistics(taps, record).save(tmp_path / "a.npz")
    assert ("mu" in np.load(tmp_path / "a.npz").files) == (weights == "w.pth")
    found = ReferenceStatistics.load(tmp_path / "a.npz")
    assert_same(taps["inception/2048"], found.taps["inception/2048"])


def test_what_others_publish_is_read(tmp_path):
    path, eye = tmp_path / "VIRTUAL.npz", np.eye(2048, dtype=np.float32)
    np.savez(
        path, mu=np.ones(2048), sigma=eye, mu_s=np.ones(2023), sigma_s=np.eye(2023)
    )
    found = ReferenceStatistics.load(path)
    # sFID's moments tell that images were resized as by TensorFlow.
    assert found.taps.keys() == {"inception/2048", "inception/spatial"}
    assert found.record["networks"].keys() == {"inception"}
    assert "note" not in found.record and "preprocessing" not in found.record
    assert found.taps["inception/2048"].covariance.dtype == np.float64
    # By which file of weights it does not say, but not by random ones.
    found.check({"networks": {"inception": NETWORK}, "preprocessing": CUT}, path)
    with pytest.raises(ConfigError, match=r"FILE \(in training eval.weights\)"):
        random = NETWORK | {"weights": "random"}
        found.check({"networks": {"inception": random}}, path)
    np.savez(path, mu=np.ones(768), sigma=np.eye(768))
    with pytest.raises(ConfigError, match="768 features.* of another network"):
        ReferenceStatistics.load(path)
    np.savez(path, mu=np.ones(2048))
    with pytest.raises(ConfigError, match="mu without sigma"):
        ReferenceStatistics.load(path)
    np.savez(path, arr_0=np.ones(3), weights=np.ones(2))
    with pytest.raises(ConfigError, match="holds arr_0, weights, no statistics"):
        ReferenceStatistics.load(path)


def test_statistics_of_others_are_told_apart(tmp_path):
    eye, records = np.eye(2048, dtype=np.float32), []
    for mean in (np.ones(2048), np.zeros(2048)):
        path = tmp_path / f"{mean[0]}" / "stats.npz"
        path.parent.mkdir()
        np.savez(path, mu=mean, sigma=eye, arr_0=np.zeros((2, 8, 16, 3), np.uint8))
        found = ReferenceStatistics.load(path)
        records.append(found.record)
    assert records[0]["name"] == records[1]["name"] == "stats.npz"
    assert records[0]["images"] != records[1]["images"]
    # pytorch-fid's file names no resize: it serves both, and a number says so.
    assert found.taps.keys() == {"inception/2048", "inception_pytorch_fid/2048"}
    assert found.record["networks"].keys() == {"inception", "inception_pytorch_fid"}
    assert "does not say how its images were resized" in found.record["note"]
    with pytest.raises(ConfigError, match="8 x 16 pixels and these have 16 x 16"):
        found.check({"preprocessing": CUT}, path)
    found.check({"preprocessing": CUT | {"size": [8, 16]}}, path)


@pytest.mark.parametrize("what", ["mean", "covariance", "rows"])
def test_numbers_that_are_not_finite_are_one_line(tmp_path, what):
    whole = statistics(4, rows=True)
    bad = np.array(getattr(whole, what))
    bad[1] = np.nan
    path = tmp_path / "a.npz"
    taps = {"inception/64": whole._replace(**{what: bad})}
    ReferenceStatistics(taps, RECORD).save(path)
    with pytest.raises(ConfigError, match=f"not finite \\(the {what} of inception/64"):
        ReferenceStatistics.load(path)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"size": [32, 32]}, r"16 x 16 pixels and these have 32 x 32"),
        ({"crop": "random"}, "crop center and these have crop random"),
        ({"resize": "lanczos"}, "resize bicubic and these have resize lanczos"),
        ({"crop": None, "resize": None}, None),
    ],
)
def test_images_that_were_cut_otherwise_are_refused(change, message):
    reference = ReferenceStatistics({}, RECORD)
    measured = {"preprocessing": CUT | change}
    if message is None:
        reference.check(measured, "a.npz")
        return
    with pytest.raises(ConfigError, match=f"the reference a.npz .*{message}"):
        reference.check(measured, "a.npz")


def test_other_weights_are_refused():
    reference = ReferenceStatistics({}, RECORD)
    measured = {"networks": {"inception": NETWORK, "clip": {"checksum": "0"}}}
    reference.check(measured, "a.npz")
    for change, message in (
        ({"checksum": "cd"}, r"other weights of inception \(checksum ab\)"),
        ({"weights": "random"}, "measured with random weights"),
    ):
        with pytest.raises(ConfigError, match=message):
            measured = {"networks": {"inception": NETWORK | change}}
            reference.check(measured, "a.npz")


def test_a_damaged_file_is_one_line(tmp_path):
    path = tmp_path / "a.npz"
    taps = {"inception/64": statistics(64, rows=True)}
    ReferenceStatistics(taps, RECORD).save(path)
    data = bytearray(path.read_bytes())
    data[3000] ^= 1
    path.write_bytes(data)
    with pytest.raises(ConfigError, match="cannot be read .*: make it again"):
        ReferenceStatistics.load(path)


@pytest.mark.parametrize(
    "one, other, same",
    [
        (words_of(0, 4095), words_of(-0.0, 4095.0), True),
        ("from 0 to 4.095e+03", words_of(0, 4095), True),
        (words_of(0, 1234567), words_of(0, 1234568), False),
        (words_of(0, 0.1), words_of(0, 0.1 + 1e-12), False),
        (whole_range_of(0, 65535), words_of(0, 65535), True),
        (words_of(-1, 1), whole_range_of(-1, 1), True),
        (whole_range_of(0, 65535), words_of(0, 255), False),
        (whole_range_of(0, 255), whole_range_of(0, 65535), True),
        # Older versions did not say of which type.
        (WHOLE_RANGE, words_of(0, 255), False),
        (WHOLE_RANGE, whole_range_of(0, 65535), True),
        (None, words_of(0, 4095), True),
        ("of another version", words_of(0, 1), False),
    ],
)
def test_ranges_are_compared_by_their_values(one, other, same):
    for first, second in ((one, other), (other, one)):
        reference = ReferenceStatistics({}, {"preprocessing": {"values": first}})
        with contextlib.nullcontext() if same else pytest.raises(ConfigError):
            reference.check({"preprocessing": {"values": second}}, "photos.npz")
