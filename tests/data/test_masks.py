"""Masks: within their bounds, repeatable, of the shape that their style says."""

import numpy as np
import pytest

from ldm_jax.data.masks import STYLES, random_mask

BOUNDS = dict(min_fraction=0.1, max_fraction=0.4)


def draw(count, style="mixed", shape=(24, 36), seed=0, **options):
    rng = np.random.default_rng(seed)
    return [random_mask(*shape, rng, style, **options) for _ in range(count)]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("shape", [(16, 16), (24, 36), (256, 256)])
def test_fraction_is_within_bounds(style, shape):
    masks = draw(40, style, shape, **BOUNDS)
    fractions = [mask.mean() for mask in masks]
    assert all(mask.shape == shape and mask.dtype == bool for mask in masks)
    assert min(fractions) >= 0.1 and max(fractions) <= 0.4
    # Not one and the same size, and not one and the same place.
    assert np.ptp(fractions) > 0.1 and len({mask.tobytes() for mask in masks}) > 25


@pytest.mark.parametrize("style", STYLES)
def test_bounds_that_the_style_seldom_meets(style):
    for low in (0.0, 0.85):
        fractions = [
            m.mean() for m in draw(10, style, min_fraction=low, max_fraction=low + 0.1)
        ]
        assert min(fractions) >= low and max(fractions) <= low + 0.1


def test_the_generator_decides():
    first, again, other = draw(5), draw(5), draw(5, seed=1)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_outpainting_leaves_one_window():
    for mask in draw(30, "outpaint", min_fraction=0.05, max_fraction=0.9):
        rows, columns = ~mask.all(axis=1), ~mask.all(axis=0)
        np.testing.assert_array_equal(mask, ~np.outer(rows, columns))
        # It misses a side at least.
        assert mask[0].all() or mask[-1].all() or mask[:, 0].all() or mask[:, -1].all()


def test_strokes_are_not_boxes():
    def straight(mask):
        """Fraction of the rows of the mask that are like the row above."""
        inside = mask.any(axis=1)
        same = (mask[1:] == mask[:-1]).all(axis=1)
        return same[inside[1:]].mean()

    strokes = np.mean([straight(m) for m in draw(20, "strokes", (64, 64))])
    boxes = np.mean([straight(m) for m in draw(20, "box", (64, 64))])
    assert strokes < 0.5 and boxes > 0.8


def test_any_place_may_be_masked():
    covered = np.mean(draw(300, "mixed", (16, 16)), axis=0)
    assert covered.min() > 0.05
