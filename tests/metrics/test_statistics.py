"""Statistics of a stream are those of the whole, to the last digit."""

import jax
import numpy as np
import pytest

from ldm_jax.errors import DataError
from ldm_jax.metrics.statistics import ALL, BLOCK, Moments

ROWS = np.random.default_rng(0).normal(3, 1, (2 * BLOCK + 300, 6)).astype(np.float32)


def _collect(rows, parts, most_rows=ALL):
    moments = Moments(rows.shape[1], most_rows)
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
    half = _collect(ROWS[::2], 1, most_rows=0).statistics()
    assert found.half.count == half.count and found.half.rows is None
    np.testing.assert_allclose(found.half.covariance, half.covariance, atol=1e-12)
    rows = ROWS.astype(np.float64)
    np.testing.assert_allclose(found.mean, rows.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(rows.T), atol=1e-12)
    np.testing.assert_array_equal(found.rows, ROWS)


@pytest.mark.parametrize("most_rows", [0, 100, 600, ALL])
@pytest.mark.parametrize("cut", [0, 1, 300, BLOCK, BLOCK + 5, 2 * BLOCK])
def test_a_cut_stream_goes_on_to_the_same_digits(most_rows, cut):
    before = _collect(ROWS[:cut], 2, most_rows)
    after = Moments(ROWS.shape[1], most_rows)
    after.restore(before.state())
    after.add(ROWS[cut:])
    expected = _collect(ROWS, 1, most_rows).statistics()
    assert_same_digits(after.statistics(), expected)
    if most_rows:
        np.testing.assert_array_equal(expected.rows, ROWS[:most_rows])


def test_what_cannot_be_summarised_or_restored():
    with pytest.raises(DataError, match="two images or more, got 1"):
        _collect(ROWS[:1], 1).statistics()
    with pytest.raises(DataError, match="of other distances"):
        Moments(5).restore(_collect(ROWS[:9], 1).state())
