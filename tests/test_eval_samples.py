"""Samples that a model is measured by: labels, conditions and the program."""

import itertools

import jax
import numpy as np
import pytest

from ldm_jax import sharding
from ldm_jax.build import sample_options
from ldm_jax.errors import ConfigError
from ldm_jax.eval_samples import (
    condition_batches,
    make_draw,
    needs_examples,
    plan_labels,
)
from tests.sampling.common import SIZE, make_trained, with_small_backbone


def _mesh(devices):
    return sharding.make_mesh(devices=jax.devices()[:devices])


def test_labels_are_planned():
    labels = plan_labels("random", 8, 1000, seed=3)
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(plan_labels("random", 8, 100, seed=3), labels[:100])
    counts = np.bincount(labels, minlength=8)
    assert counts.min() > 80 and counts.max() > counts.min()
    assert (plan_labels("random", 8, 1000, seed=4) != labels).any()
    balanced = plan_labels("balanced", 8, 50, seed=3)
    assert sorted(np.bincount(balanced, minlength=8)) == [6] * 6 + [7] * 2
    with pytest.raises(ConfigError, match="balanced"):
        plan_labels("equal", 8, 50, seed=3)


def _collected(batches):
    """Index and label of the rows that count."""
    rows = []
    for conditions in batches:
        mask = np.asarray(conditions.mask)
        label = conditions.inputs.get("label", conditions.index)
        rows += zip(
            np.asarray(conditions.index)[mask], np.asarray(label)[mask], strict=True
        )
    return rows


def test_neither_batches_nor_cuts_change_the_conditions():
    model = make_trained("label", scale=0).model
    whole = _collected(condition_batches(model, _mesh(8), 21, 8))
    assert [int(index) for index, _ in whole] == list(range(21))
    labels = plan_labels("random", 8, 21, seed=0)
    np.testing.assert_array_equal([label for _, label in whole], labels)
    parts = itertools.chain(
        condition_batches(model, _mesh(1), 5, 3),
        condition_batches(model, _mesh(4), 21, 2, start=5),
    )
    # The plan of more samples begins with that of fewer.
    assert _collected(parts) == whole


def test_conditions_of_examples_are_taken_in_order(caplog):
    model, mesh = make_trained("segmentation", scale=0).model, _mesh(2)
    assert needs_examples(model)
    masks = [[True, True], [False, True], [True, True]]

    def examples():
        for position, mask in enumerate(masks):
            maps = np.full((2, SIZE, SIZE), position, np.int32)
            batch = {"segmentation": maps, "mask": np.array(mask), "other": maps}
            yield sharding.put_batch(batch, mesh)

    def taken(count, start=0):
        found = condition_batches(
            model, mesh, count, 2, examples=examples(), start=start
        )
        found = list(found)
        assert all(batch.inputs.keys() == {"segmentation"} for batch in found)
        return [int(index) for index, _ in _collected(found)]

    # That of row 2 cannot be read.
    assert taken(4) == [0, 1, 3, 4]
    assert taken(4, start=2) == [3, 4]
    with caplog.at_level("WARNING"):
        assert taken(6) == [0, 1, 3, 4, 5]
    assert "6 samples were asked for, but conditions of 5 alone" in caplog.text


def test_samples_are_the_same_on_any_devices_and_in_any_batch():
    trained = with_small_backbone(make_trained("label"))
    options = sample_options(trained.config, trained.model)
    drawn = {}
    for devices, size in ((1, 4), (4, 8), (8, 8)):
        mesh = _mesh(devices)
        draw = make_draw(trained.model, options, mesh, seed=1)
        weights = sharding.put_tree(
            (trained.params, trained.frozen),
            sharding.tree_shardings((trained.params, trained.frozen), mesh),
        )
        (batch,) = itertools.islice(
            condition_batches(trained.model, mesh, 8, size, start=8 - size), 1
        )
        images, finite = draw(*weights, batch.inputs, batch.index)
        assert images.sharding.num_devices == devices and np.all(finite)
        drawn[devices] = np.asarray(images[-4:]).astype(int)
    assert drawn[1].std() > 10
    for devices in (4, 8):
        assert np.abs(drawn[devices] - drawn[1]).max() <= 1
