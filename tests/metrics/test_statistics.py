"""Statistics of a stream are those of the whole, to the last digit."""

from fractions import Fraction

import jax
import numpy as np
import pytest

from ldm_jax.data.sources import spread
from ldm_jax.errors import DataError
from ldm_jax.metrics.statistics import ALL, BLOCK, NONE, Moments, evenly_spaced

ROWS = np.random.default_rng(0).normal(3, 1, (2 * BLOCK + 300, 6)).astype(np.float32)


def _collect(rows, parts, kept=ALL):
    moments = Moments(rows.shape[1], kept)
    for part in np.array_split(rows, parts):
        moments.add(part)
    return moments


def assert_same_digits(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("parts", [1, 2, 7, 90])
def test_batches_of_any_size_give_the_same_digits(parts):
    found, whole = (_collect(ROWS, n).statistics() for n in (parts, 1))
    assert found.count == len(ROWS)
    assert_same_digits(found, whole)
    half = _collect(ROWS[::2], 1, NONE).statistics()
    assert found.half.count == half.count and found.half.rows is None
    np.testing.assert_allclose(found.half.covariance, half.covariance, atol=1e-12)
    rows = ROWS.astype(np.float64)
    np.testing.assert_allclose(found.mean, rows.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(rows.T), atol=1e-12)
    np.testing.assert_array_equal(found.rows, ROWS)


@pytest.mark.parametrize("most", [0, 1, 100, 600, len(ROWS)])
@pytest.mark.parametrize("cut", [0, 1, 300, BLOCK, BLOCK + 5, 2 * BLOCK])
def test_a_cut_stream_goes_on_to_the_same_digits(most, cut):
    kept = Fraction(most, len(ROWS))
    before = _collect(ROWS[:cut], 2, kept)
    after = Moments(ROWS.shape[1], kept)
    after.restore(before.state())
    after.add(ROWS[cut:])
    expected = _collect(ROWS, 1, kept).statistics()
    assert_same_digits(after.statistics(), expected)
    assert (expected.rows is None) == (most == 0)
    if most:
        chosen = evenly_spaced(len(ROWS), most)
        np.testing.assert_array_equal(expected.rows, ROWS[chosen])


@pytest.mark.parametrize("total, most", [(1300, 7), (1_281_167, 10_000), (5, 9)])
def test_rows_are_of_all_classes_of_a_sorted_set(total, most):
    chosen = evenly_spaced(total, most)
    source = spread(range(total), most)
    np.testing.assert_array_equal(chosen, [source[k] for k in range(len(source))])
    assert len(chosen) == min(most, total)
    assert total <= most or np.ptp(np.diff(chosen)) <= 1


def test_what_cannot_be_summarised_or_restored():
    with pytest.raises(DataError, match="two images or more, got 1"):
        _collect(ROWS[:1], 1).statistics()
    with pytest.raises(DataError, match="of other metrics"):
        Moments(5).restore(_collect(ROWS[:9], 1).state())
    rows = len(ROWS)
    with pytest.raises(DataError, match=r"holds rows \(1324, 6\), expected \(314, 6\)"):
        state = _collect(ROWS, 1).state()
        Moments(6, Fraction(18, rows)).restore(state)
