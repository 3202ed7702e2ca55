"""Orders, mixtures and buckets, as properties of indices: no image is made."""

import pickle

import numpy as np
import pytest

from ldm_jax.data.orders.apportionment import apportion
from ldm_jax.data.orders.bucket_order import BucketOrder
from ldm_jax.data.orders.buckets import (
    BucketOptions,
    assign,
    bucket_shapes,
    tier_shapes,
)
from ldm_jax.data.orders.describe import table
from ldm_jax.data.orders.mixture import MixtureSource, Part
from ldm_jax.data.orders.order import Shuffled
from ldm_jax.data.orders.part_counts import PartCounts
from ldm_jax.data.sources import Subset


def draw_sizes(rng, count, least=40, most=900):
    """Odd sizes of all proportions, int32 [count, 2]."""
    logs = rng.uniform(np.log(least), np.log(most), (count, 2))
    return np.exp(logs).astype(np.int32)


# ---- Plain orders.


def test_an_epoch_is_a_permutation_of_its_own():
    order = Shuffled(50, seed=3)
    epochs = [order.epoch(number).tolist() for number in range(4)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert Shuffled(50, seed=3).epoch(2).tolist() == epochs[2]
    assert Shuffled(50, seed=2**64 - 1).epoch(2).tolist() != epochs[2]


def test_positions_and_ranges_agree():
    order = Shuffled(7, seed=0)
    taken = order.take(3, 40)
    assert [order[position] for position in range(3, 40)] == taken.tolist()
    assert order.take(5, 5).tolist() == []
    again = pickle.loads(pickle.dumps(order))
    assert again.take(3, 40).tolist() == taken.tolist()


# ---- Shares of a mixture.


def test_shares_grow_and_stay_near_what_weights_ask_for():
    rng = np.random.default_rng(0)
    for _ in range(30):
        weights = rng.uniform(0.01, 1, rng.integers(1, 6))
        counts = np.array([apportion(weights.tolist(), n) for n in range(150)])
        assert (counts.sum(axis=1) == np.arange(150)).all()
        assert (np.diff(counts, axis=0) >= 0).all()
        exact = np.arange(150)[:, None] * weights / weights.sum()
        assert abs(counts - exact).max() < 1.5


def test_counts_of_equal_weights_and_of_lengths_are_exact():
    assert apportion([1, 1, 1], 300) == [100, 100, 100]
    assert apportion([0.7, 0.3], 10**12) == [7 * 10**11, 3 * 10**11]
    assert apportion([13, 7], 20 * 9) == [13 * 9, 7 * 9]


# ---- Shapes.


@pytest.mark.parametrize("size, step, ratio", [(512, 64, 2.0), (96, 16, 3.0)])
def test_shapes_keep_step_area_and_ratio(size, step, ratio):
    shapes = tier_shapes(size, step, ratio)
    assert [size, size] in shapes.tolist()
    assert (shapes % step == 0).all() and (shapes.prod(axis=1) <= size**2).all()
    assert (shapes.max(axis=1) <= ratio * shapes.min(axis=1)).all()
    # Wide and tall alike, from wide to tall.
    assert sorted(shapes.tolist()) == sorted(shapes[:, ::-1].tolist())
    ratios = shapes[:, 0] / shapes[:, 1]
    assert (np.diff(ratios) > 0).all()
    # Nothing larger is possible in one direction at least.
    for height, width in shapes.tolist():
        assert any(
            h * w > size**2 or max(h, w) > ratio * min(h, w)
            for h, w in ((height + step, width), (height, width + step))
        )


def test_a_ratio_of_one_leaves_squares():
    options = BucketOptions(sizes=(128, 64, 64), step=64, max_ratio=1)
    assert bucket_shapes(options).tolist() == [[64, 64], [128, 128]]


def test_every_image_goes_to_the_largest_tier_that_it_covers():
    options = BucketOptions(sizes=(64, 128), step=32)
    sizes = [(64, 64), (128, 128), (127, 500), (500, 500), (20, 30), (0, 0), (63, 200)]
    buckets = assign(np.array(sizes), options)
    found = buckets.shapes[buckets.of].tolist()
    assert found[0] == [64, 64] and found[1] == found[3] == [128, 128]
    # A tier's widest shape is taken for what is wider still.
    assert found[2] == [64, 128] and found[6] == [32, 64]
    assert buckets.enlarged.tolist() == [4] and buckets.unknown.tolist() == [5]
    assert found[5] == [64, 64]
    assert sum("x" in line for line in table(buckets)[1:]) == 4


def test_an_image_goes_to_the_nearest_ratio():
    rng = np.random.default_rng(1)
    sizes = draw_sizes(rng, 500, 200, 3000)
    options = BucketOptions(sizes=(128,), step=16, max_ratio=2.5)
    buckets = assign(sizes, options)
    ratios = np.log(buckets.shapes[:, 0] / buckets.shapes[:, 1])
    own = np.log(sizes[:, 0] / sizes[:, 1])
    gaps = abs(own[:, None] - ratios)
    np.testing.assert_allclose(gaps[np.arange(500), buckets.of], gaps.min(axis=1))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="sizes has 32, which is less than step=64"):
        BucketOptions(sizes=32)
    with pytest.raises(ValueError, match="less than step"):
        BucketOptions().at(48)


# ---- Epochs in buckets.


def check_order(order, base, buckets, batch_size, epochs):
    """Every epoch holds what the base's does; every batch is of one shape."""
    length = base.length
    for number in range(epochs):
        found, expected = order.epoch(number), base.epoch(number)
        np.testing.assert_array_equal(np.sort(found), np.sort(expected))
    stream = np.concatenate([order.epoch(number) for number in range(epochs)])
    moved = 0
    for start in range(0, epochs * length - batch_size + 1, batch_size):
        shapes = {order.shape_at(start + row) for row in range(batch_size)}
        assert len(shapes) == 1
        own = buckets.shapes[buckets.of[stream[start : start + batch_size]]]
        moved += (own != shapes.pop()).any(axis=1).sum()
    return moved


def test_batches_are_of_one_bucket_and_nothing_is_lost():
    rng = np.random.default_rng(2)
    for trial in range(60):
        count, batch_size = int(rng.integers(1, 200)), int(rng.integers(1, 17))
        sizes = draw_sizes(rng, count)
        options = BucketOptions(sizes=(96, 160), step=32, max_ratio=2.0)
        buckets = assign(sizes, options)
        base = Shuffled(count, seed=trial)
        order = BucketOrder(base, buckets, batch_size)
        moved = check_order(order, base, buckets, batch_size, epochs=4)
        if batch_size == 1:
            assert moved == 0
        # Once more, from the middle: nothing but seed and epoch decides.
        again = BucketOrder(Shuffled(count, seed=trial), buckets, batch_size)
        np.testing.assert_array_equal(again.epoch(3), order.epoch(3))


def test_twenty_thousand_odd_images():
    rng = np.random.default_rng(3)
    sizes = draw_sizes(rng, 20_000, 100, 2000)
    options = BucketOptions(sizes=(256, 512), step=64)
    buckets = assign(sizes, options)
    base = Shuffled(20_000, seed=1)
    order = BucketOrder(base, buckets, 64)
    stream = order.take(0, 60_000)
    for epoch in stream.reshape(3, 20_000):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(20_000))
    starts = range(0, 60_000 - 63, 64)
    shapes = np.array([order.shape_at(start) for start in starts])
    rows = stream[: 64 * len(starts)].reshape(-1, 64)
    same = (buckets.shapes[buckets.of[rows]] == shapes[:, None]).all(axis=-1)
    # All but some of each bucket's last batch are in their own shape, and who they are
    # is another matter in each epoch.
    assert same.mean() > 0.98 and len({tuple(s) for s in shapes.tolist()}) > 10
    misfits = [set(rows[k : k + 312][~same[k : k + 312]]) for k in (0, 313)]
    assert len(misfits[0] & misfits[1]) < len(misfits[0]) / 2
    assert len(misfits[0]) <= order.moved(0) < len(misfits[0]) + 64


def test_the_main_bucket_is_shared_out_too():
    # A neighbour gives up a batch where the ends of an epoch need more.
    shapes = BucketOptions(sizes=(64,), step=32)
    sizes = np.array([(64, 64)] * 5 + [(64, 32)] * 5 + [(32, 64)] * 4)
    buckets = assign(sizes, shapes)
    base = Shuffled(14, seed=0)
    check_order(BucketOrder(base, buckets, 4), base, buckets, 4, epochs=8)


def test_leftovers_are_mixed_into_the_batches_of_their_new_bucket():
    sizes = np.concatenate([np.full((960, 2), 64), np.tile([64, 32], (47, 1))])
    buckets = assign(sizes, BucketOptions(sizes=(64,), step=32))
    order = BucketOrder(Shuffled(len(sizes), 0), buckets, 16)
    square = [s for s in range(60) if order.shape_at(16 * s) == (64, 64)]
    strangers = [(order.take(16 * s, 16 * s + 16) >= 960).sum() for s in square]
    assert sum(strangers) == order.moved(0) == 15 and max(strangers) < 6


# ---- Mixtures.


class Numbers:
    """A source without images: example i of part "a" is a0, a1, ..."""

    def __init__(self, name, count, classes=None, shape=None):
        self.name, self.count, self.class_names = name, count, classes
        self.num_classes = classes and len(classes)
        self.skipped = [(f"{name} x", "gone")]
        if shape:
            self.sizes = lambda: np.tile(np.int32(shape), (count, 1))

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        example = {"name": self.describe(index)}
        return example | (
            {"label": index % self.num_classes} if self.num_classes else {}
        )

    def describe(self, index):
        return f"{self.name}{index}"


def mix(weights=(None, None), **options):
    sources = Numbers("a", 13, **options), Numbers("b", 7, **options)
    return MixtureSource(
        "train", {s.name: Part(s, w) for s, w in zip(sources, weights, strict=True)}
    )


def test_a_mixture_has_the_examples_of_all_parts():
    mixture = mix()
    assert len(mixture) == 20 and mixture.names == ("a", "b")
    names = [mixture[index]["name"] for index in range(20)]
    assert names == [f"a{k}" for k in range(13)] + [f"b{k}" for k in range(7)]
    assert [mixture.describe(index) for index in range(20)] == names
    assert mixture.skipped == [("a x", "gone"), ("b x", "gone")]
    assert not hasattr(mixture, "sizes") and not hasattr(mixture, "draw")
    assert mix(shape=(3, 5)).sizes().shape == (20, 2)
    assert mixture.columns(["part"])["part"].tolist() == ["a"] * 13 + ["b"] * 7


def test_without_weights_an_epoch_has_each_example_once():
    order = mix().make_order(5)
    for number in range(3):
        assert sorted(order.epoch(number)) == list(range(20))


def test_weights_are_kept_and_each_part_is_gone_through_in_turn():
    mixture = mix((0.2, 0.8))
    order, seen = mixture.make_order(5), np.zeros(20, int)
    counts = PartCounts(mixture, order)
    for position in range(1, 141):
        index = order[position - 1]
        seen[index] += 1
        if position % 7 == 0:
            parts = {"data/images/a": seen[:13].sum(), "data/images/b": seen[13:].sum()}
            assert counts.at(position) == parts
    # Twenty per cent of seven epochs are 28 examples: a is through twice and begun.
    assert seen[:13].sum() == 28 and seen[13:].sum() == 112
    assert set(seen[:13]) == {2, 3} and set(seen[13:]) == {16}
    # The same from the middle, by another instance.
    assert PartCounts(mixture, mix((0.2, 0.8)).make_order(5)).at(133) == {
        "data/images/a": np.isin(order.take(0, 133), range(13)).sum(),
        "data/images/b": np.isin(order.take(0, 133), range(13, 20)).sum(),
    }


def test_a_mixture_in_buckets_keeps_its_shares():
    rng = np.random.default_rng(6)
    mixture = mix((0.3, 0.7))
    buckets = assign(draw_sizes(rng, 20), BucketOptions(sizes=(64,), step=32))
    base = mixture.make_order(1)
    check_order(BucketOrder(base, buckets, 4), base, buckets, 4, epochs=9)


def test_mixtures_within_mixtures():
    outer = MixtureSource(
        "train", {"both": Part(mix((0.5, 0.5)), 3), "c": Part(Numbers("c", 5), 1)}
    )
    order = outer.make_order(0)
    taken = [outer.describe(index)[0] for index in order.take(0, 400).tolist()]
    assert [taken.count(name) for name in "abc"] == [150, 150, 100]
    assert (
        pickle.loads(pickle.dumps(order)).epoch(3).tolist() == order.epoch(3).tolist()
    )


def test_classes_are_joined_by_name():
    one, two = Numbers("a", 4, ("cat", "dog")), Numbers("b", 4, ("dog", "eel"))
    mixture = MixtureSource("train", {"a": Part(one), "b": Part(two)})
    assert mixture.class_names == ("cat", "dog", "eel") and mixture.num_classes == 3
    assert [int(mixture[k]["label"]) for k in range(8)] == [0, 1, 0, 1, 1, 2, 1, 2]
    bare = MixtureSource("train", {"a": Part(one), "b": Part(Numbers("b", 4))})
    assert bare.num_classes is None and "label" not in bare[0]


def test_what_a_mixture_cannot_join_is_refused():
    latents = Numbers("b", 4)
    latents.encoded = True
    with pytest.raises(ValueError, match="some parts hold latents and some images"):
        MixtureSource("train", {"a": Part(Numbers("a", 4)), "b": Part(latents)})
    with pytest.raises(ValueError, match="give data.parts"):
        MixtureSource("train", {})


def test_chosen_examples_keep_what_the_source_knows():
    source = mix(shape=(3, 5))
    chosen = Subset(source, [19, 2])
    assert chosen.sizes().tolist() == [[3, 5]] * 2 and chosen.skipped == source.skipped
    assert chosen.columns(["part"])["part"].tolist() == ["b", "a"]
    assert chosen.fingerprint() != Subset(source, [2, 19]).fingerprint()
    bare = pickle.loads(pickle.dumps(Subset([1, 2], [0])))
    names = "sizes", "columns", "draw", "fingerprint", "column_names", "encoded"
    assert not any(hasattr(bare, name) for name in names)
