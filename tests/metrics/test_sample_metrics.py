"""Metrics of given features: what torch-fidelity and pytorch-fid make of them."""

import numpy as np
import pytest

from ldm_jax.metrics.set_metrics import SET_METRICS, blocks, kernel
from ldm_jax.metrics.set_metrics.clip_score import caption_cosine, clip_score
from ldm_jax.metrics.set_metrics.frechet import frechet
from ldm_jax.metrics.statistics import ALL, Moments
from tests.common import load_case

CASE = load_case("sample_metrics").arrays
FIRST, SECOND, LOGITS = (CASE[k] for k in ("features_1", "features_2", "logits"))


def statistics_of(rows):
    moments = Moments(rows.shape[1], ALL)
    moments.add(rows)
    return moments.statistics()


def measure(name, first, second=None, seed=2020):
    second = None if second is None else statistics_of(second)
    return SET_METRICS[name].measure(statistics_of(first), second, seed)


# pytorch-fid's calculate_frechet_distance and torch-fidelity's agree to 13 digits.
@pytest.mark.parametrize(
    "counts, expected",
    [
        ((600, 500), CASE["frechet_inception_distance"]),
        ((20, 25), 34.40138914308506),
        ((20, 500), 27.18615321376403),
    ],
)
def test_fid(counts, expected):
    found = measure("fid", FIRST[: counts[0]], SECOND[: counts[1]])
    assert found.value == pytest.approx(float(expected), rel=1e-7)
    back = measure("fid", SECOND[: counts[1]], FIRST[: counts[0]])
    assert back.value == pytest.approx(float(expected), rel=1e-7)
    assert ("no more images than the 32 features" in found.note) == (counts[0] == 20)


def test_the_bias_of_fid_is_what_more_images_take_off():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((2400, 16)).astype(np.float32)
    reference = statistics_of(rng.standard_normal((20_000, 16)).astype(np.float32))
    few, many = (frechet(statistics_of(rows[:n]), reference) for n in (300, 2400))
    # Sets of the same distribution: the distance is nothing but bias.
    assert few.bias == pytest.approx(few.value, rel=0.5) and few.value > 0.1
    assert many.bias == pytest.approx(many.value, rel=0.5) and many.value < 0.05


@pytest.mark.parametrize(
    "counts, size, seed, mean, deviation",
    [
        ((600, 500), 100, 2020, 0.04655096292495728, 0.022643332019244875),
        ((600, 500), 1000, 7, 0.05301797389984131, 0.002262267457841579),
        ((40, 30), 30, 7, 0.10109807014465332, 0.03499799983337939),
    ],
)
def test_kid_of_the_same_subsets(monkeypatch, counts, size, seed, mean, deviation):
    monkeypatch.setattr(kernel, "SUBSET_SIZE", size)
    found = measure("kid", FIRST[: counts[0]], SECOND[: counts[1]], seed)
    assert found.value == pytest.approx(mean, rel=2e-5)
    assert found.deviation == pytest.approx(deviation, rel=2e-5)
    note = "subsets of 500 images instead of 1000"
    assert found.note == (note if size == 1000 else "")


def test_kid_of_the_reference_case(monkeypatch):
    monkeypatch.setattr(kernel, "SUBSETS", 50)
    monkeypatch.setattr(kernel, "SUBSET_SIZE", 100)
    found = measure("kid", FIRST, SECOND)
    mean, deviation = (CASE[f"kernel_inception_distance_{k}"] for k in ("mean", "std"))
    assert found.value == pytest.approx(float(mean), rel=2e-5)
    assert found.deviation == pytest.approx(float(deviation), rel=2e-5)
    # Sets that are their only subset have no spread.
    monkeypatch.setattr(kernel, "SUBSETS", 2)
    assert measure("kid", FIRST[:50], SECOND[:50]).deviation is None


def test_inception_score():
    found = measure("inception_score", LOGITS)
    mean, deviation = (CASE[f"inception_score_{k}"] for k in ("mean", "std"))
    assert found.value == pytest.approx(float(mean), rel=1e-10)
    assert found.deviation == pytest.approx(float(deviation), rel=1e-10)
    found = measure("inception_score", LOGITS[:73], seed=7)
    assert found.value == pytest.approx(4.165187389517369, rel=1e-10)
    # As many classes as images are sure of, in each part.
    sure = 1e4 * np.eye(4, dtype=np.float32)[np.arange(4000) % 4]
    assert measure("inception_score", sure).value == pytest.approx(4, abs=0.05)
    few = measure("inception_score", LOGITS[:5])
    assert few.value == pytest.approx(1) and few.note == "5 parts instead of 10"


@pytest.mark.parametrize("block", [2048, 64])
@pytest.mark.parametrize(
    "counts, precision, recall",
    [((600, 500), None, None), ((100, 300), 0.98, 0.3266666531562805)],
)
def test_precision_and_recall(monkeypatch, block, counts, precision, recall):
    monkeypatch.setattr(blocks, "BLOCK", block)
    found = measure("precision_recall", FIRST[: counts[0]], SECOND[: counts[1]])
    expected = {"precision": precision, "recall": recall}
    for name, value in expected.items():
        value = CASE[name] if value is None else value
        assert found[name].value == pytest.approx(float(value), abs=1e-6)


@pytest.mark.parametrize("block", [2048, 16])
def test_density_and_coverage(monkeypatch, block):
    monkeypatch.setattr(blocks, "BLOCK", block)
    x, y = FIRST[:70].astype(np.float64), SECOND[:60].astype(np.float64)
    real, fake = (np.linalg.norm(y[:, None] - z[None], axis=-1) for z in (y, x))
    # The row itself is the nearest one of all.
    radii = np.sort(real, axis=1)[:, 5]
    inside = fake < radii[:, None]
    found = measure("density_coverage", FIRST[:70], SECOND[:60])
    assert found["density"].value == pytest.approx(inside.sum() / 5 / 70)
    assert found["coverage"].value == pytest.approx(inside.any(axis=1).mean())
    few = measure("density_coverage", FIRST[:9], SECOND[:4])
    assert few["density"].note == "k = 3 instead of 5"


def test_balls_of_a_set_hold_it():
    found = measure("precision_recall", FIRST, FIRST)
    assert found["precision"].value == found["recall"].value == 1
    apart = measure("precision_recall", FIRST, FIRST + np.float32(100))
    assert apart["precision"].value == apart["recall"].value == 0


@pytest.mark.parametrize("block", [2048, 100])
def test_cmmd(monkeypatch, block):
    monkeypatch.setattr(blocks, "BLOCK", block)
    x, y = (z / np.linalg.norm(z, axis=1)[:, None] for z in (FIRST, SECOND))
    x, y = x.astype(np.float64), y.astype(np.float64)

    def mean(a, b):
        squares = np.square(a[:, None] - b[None]).sum(axis=-1)
        return np.exp(-squares / (2 * 10**2)).mean()

    expected = 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))
    first, second = statistics_of(FIRST), statistics_of(SECOND)
    assert kernel.cmmd(first, second).value == pytest.approx(expected, rel=1e-5)
    assert kernel.cmmd(first, first).value == pytest.approx(0, abs=1e-6)


def test_clip_score():
    images, captions = np.float32([[3, 4], [2, 0], [1, 0]]), np.eye(2)[[0, 0, 1]]
    cosines = caption_cosine(images, np.float32(7 * captions - [[0], [0], [2]]))
    captions = 7 * captions - [[0], [0], [2]]
    expected = [0.6, 1.0, captions[2][0] / np.linalg.norm(captions[2])]
    np.testing.assert_allclose(cosines[:, 0], expected, rtol=1e-6)
    found = clip_score(statistics_of(np.asarray(cosines)), None)
    scores = [60.0, 100.0, 0.0]
    assert found.value == pytest.approx(np.mean(scores), rel=1e-6)
    assert found.deviation == pytest.approx(np.std(scores, ddof=1) / 3**0.5, rel=1e-6)


@pytest.mark.parametrize("name", ["kid", "precision_recall", "density_coverage", "fid"])
def test_the_order_of_images_does_not_count(monkeypatch, name):
    # One subset, of all images.
    monkeypatch.setattr(kernel, "SUBSETS", 1)
    order = np.random.default_rng(0).permutation(500)
    found, again = (
        measure(name, rows, FIRST[:500]) for rows in (SECOND, SECOND[order])
    )
    found, again = (
        list(each.values()) if isinstance(each, dict) else [each]
        for each in (found, again)
    )
    for one, other in zip(found, again, strict=True):
        assert one.value == pytest.approx(other.value, rel=1e-5)
