"""Several sources as one, in proportions set in the config.

    data=dict(source="mixture", parts=dict(
        art=dict(source="folder", name="art", weight=0.7),
        photos=dict(source="tar", name="photos/{000..099}.tar", weight=0.3),
    ))

A part inherits the options that it does not set from the section `data`. An epoch has
as many examples as all parts together: the next ones of each part's own endless stream,
in proportion to its weight, shuffled together. Weights are by default the numbers of
examples, so that each example comes once per epoch.
"""

import hashlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ldm_jax.annotations import Int, Shaped
from ldm_jax.data.orders.apportionment import apportion
from ldm_jax.data.orders.order import Order, Shuffled, shuffle


class Part(NamedTuple):
    """A source of a mixture.

    Attributes:
      source: Opened source.
      weight: Its weight among the others, > 0; None for its number of examples.
    """

    source: Any
    weight: float | None = None


class MixtureSource:
    """The examples of several sources, one source after the other.

    Classes are merged by name: the classes of all parts, those of the first part first.
    Without names all parts must have the same number of classes; if a part has no
    classes, the mixture has none.

    Attributes:
      names: Names of the parts, in alphabetical order.
      num_classes: Number of classes, or None.
      class_names: Their names, or None.
      encoded: Whether examples already have the form of batches.
      remote: Whether some examples come over the network.
      skipped: List of (where, why) of what was left out when the parts were opened.
    """

    def __init__(self, split: str, parts: Mapping[str, Part]) -> None:
        """Joins sources.

        Args:
          split: Not used: each part is opened with its own.
          parts: Name -> Part.

        Raises:
          ValueError: If there is no part, or they are not compatible.
        """
        del split
        if not parts:
            raise ValueError(
                "a mixture has no parts: give data.parts, as "
                "--config.data.parts.NAME.source=folder"
            )
        # Sorted, so that the order in a config does not matter.
        self.names = tuple(sorted(parts))
        self._parts = [parts[name].source for name in self.names]
        self._weights = [
            len(parts[name].source)
            if parts[name].weight is None
            else parts[name].weight
            for name in self.names
        ]
        lengths = [len(source) for source in self._parts]
        self._starts = np.cumsum([0, *lengths])
        kinds = {getattr(source, "encoded", False) for source in self._parts}
        if len(kinds) > 1:
            raise ValueError("some parts hold latents and some images: mix one kind")
        self.encoded = kinds.pop()
        self.remote = any(getattr(source, "remote", False) for source in self._parts)
        self.skipped = [
            entry for source in self._parts for entry in getattr(source, "skipped", ())
        ]
        self.num_classes, self.class_names, self._labels = _join_classes(
            self.names, self._parts
        )

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns an example, with the label of the mixture."""
        part, place = self._find(index)
        return self._relabel(part, self._parts[part][place])

    @property
    def draw(self) -> Callable[..., dict[str, Any]]:
        """The `draw` of all parts; see `sources.py`.

        Returns:
          (index, rng, flip) -> example; absent if a part has no `draw`.
        """
        draws = [source.draw for source in self._parts]

        def draw(index, rng, flip):
            part, place = self._find(index)
            return self._relabel(part, draws[part](place, rng, flip))

        return draw

    def _relabel(self, part, example):
        if "label" not in example:
            return example
        if self.num_classes is None:
            return {key: value for key, value in example.items() if key != "label"}
        label = int(example["label"])
        numbers = self._labels[part]
        if numbers is not None and 0 <= label < len(numbers):
            label = numbers[label]
        return dict(example) | {"label": np.int32(label)}

    def describe(self, index: int) -> str:
        """Names an example, for messages.

        Args:
          index: Its position.

        Returns:
          Its part's name of it.
        """
        part, place = self._find(index)
        return self._parts[part].describe(place)

    def _find(self, index):
        """The part of an example, and its index in it."""
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return part, int(index - self._starts[part])

    def part_of(self, indices: Int[np.ndarray, " count"]) -> Int[np.ndarray, " count"]:
        """Returns the parts of examples.

        Args:
          indices: Positions of examples, int [n].

        Returns:
          Numbers of parts in `names`, int [n].
        """
        return np.searchsorted(self._starts, indices, side="right") - 1

    def totals(self, epochs: int) -> list[int]:
        """Counts the examples of each part in an order of this mixture.

        Args:
          epochs: Number of epochs.

        Returns:
          Number of examples of each part in the first `epochs` epochs.
        """
        return apportion(self._weights, epochs * len(self))

    def fingerprint(self) -> str:
        """Identifies the mixture.

        Returns:
          Hash of the names, weights, lengths and fingerprints of its parts.
        """
        digest = hashlib.blake2b(digest_size=16)
        for name, source, weight in zip(
            self.names, self._parts, self._weights, strict=True
        ):
            own = getattr(source, "fingerprint", lambda: "")()
            digest.update(f"{name}\0{weight}\0{len(source)}\0{own}\0".encode())
        return digest.hexdigest()

    @property
    def sizes(self) -> Callable[[], Int[np.ndarray, "count 2"]]:
        """Sizes of all images; see `sources.py`.

        Returns:
          () -> int32 [N, 2]; absent if a part has no sizes.
        """
        ways = [source.sizes for source in self._parts]
        return lambda: np.concatenate([way() for way in ways])

    @property
    def column_names(self) -> tuple[str, ...]:
        """Names of the columns of all parts, and "part".

        Returns:
          Names, sorted.
        """
        names = {"part"}
        for source in self._parts:
            names |= set(getattr(source, "column_names", ()))
        return tuple(sorted(names))

    def columns(self, names: Sequence[str]) -> dict[str, Shaped[np.ndarray, " count"]]:
        """Reads metadata of all examples; "part" is the name of the part.

        Args:
          names: Some of `column_names`.

        Returns:
          Name -> array [N]; values missing in a part are NaN among numbers, else None.
        """
        found = [
            source.columns([n for n in names if n in source.column_names])
            if hasattr(source, "columns")
            else {}
            for source in self._parts
        ]
        return {name: self._column(name, found) for name in names}

    def _column(self, name, found):
        arrays = []
        numbers = all(c[name].dtype.kind in "fiub" for c in found if name in c)
        for part, columns in zip(self.names, found, strict=True):
            size = len(self._parts[self.names.index(part)])
            if name == "part":
                arrays.append(np.full(size, part, object))
            elif name in columns:
                arrays.append(columns[name])
            else:
                arrays.append(
                    np.full(size, np.nan) if numbers else np.full(size, None, object)
                )
        return np.concatenate(arrays)

    def make_order(self, seed: int) -> "MixtureOrder":
        """Makes the order of the examples in training.

        Args:
          seed: Seed of the order.

        Returns:
          A MixtureOrder.
        """
        orders = []
        for name, source in zip(self.names, self._parts, strict=True):
            # Seeded by the name, so that other parts do not change this one's order.
            words = [seed % 2**32, seed // 2**32, zlib.crc32(name.encode())]
            own = int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])
            make = getattr(source, "make_order", None)
            orders.append(make(own) if make else Shuffled(len(source), own))
        return MixtureOrder(orders, self._starts[:-1], self._weights, seed)


class MixtureOrder(Order):
    """Epochs of a mixture: examples of each part in proportion to its weight."""

    # Parts may be mixtures: the length of their epochs, too, is their example count.

    def __init__(
        self,
        orders: Sequence[Order],
        starts: Int[np.ndarray, " parts"],
        weights: Sequence[float],
        seed: int,
    ) -> None:
        """Stores the parts.

        Args:
          orders: Order of each part, whose epochs may have any length.
          starts: Index of the first example of each part.
          weights: Weight of each part.
          seed: Seed of the order.
        """
        super().__init__(sum(order.length for order in orders), seed)
        self._orders, self._starts, self._weights = orders, starts, weights

    def _make(self, number):
        before, after = (
            apportion(self._weights, epochs * self.length)
            for epochs in (number, number + 1)
        )
        taken = [
            order.take(*ends) + start
            for order, start, *ends in zip(
                self._orders, self._starts, before, after, strict=True
            )
        ]
        return shuffle(np.concatenate(taken), self.seed, number)


def _join_classes(names, parts):
    """Merges classes: (number, names, new number of each class of each part)."""
    none = [None] * len(parts)
    if any(source.num_classes is None for source in parts):
        return None, None, none
    if any(source.class_names is None for source in parts):
        counts = {source.num_classes for source in parts}
        if len(counts) > 1:
            listed = ", ".join(
                f"{name} {source.num_classes}"
                for name, source in zip(names, parts, strict=True)
            )
            raise ValueError(
                f"the parts of a mixture have classes without names, and not as many "
                f'of them ({listed}): give label_key="" to do without labels'
            )
        return counts.pop(), None, none
    joined = list(
        dict.fromkeys(str(name) for source in parts for name in source.class_names)
    )
    numbers = {name: number for number, name in enumerate(joined)}
    labels = [[numbers[str(name)] for name in source.class_names] for source in parts]
    return len(joined), tuple(joined), labels
