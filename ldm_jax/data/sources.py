"""Data sources: where examples come from, by the name of `data.source`.

A source is a class that is opened with `split` and its own options from the config
section `data`. It has

- `len(source)` and `source[index]`, a dict with "image" (encoded bytes, or a uint8
  array [H, W, C]), "label" (int) where there are classes, and the further `keys`;
- `describe(index)`, which names the example in a message;
- `num_classes` and `class_names`, None where there are none;
- `fingerprint()`, a string that differs for different data, cheap to compute; it is
  optional: without it only the above is compared between runs.

It raises ValueError if it cannot be opened, and can be pickled, as every worker process
gets a copy. It never imports jax. If the storage of its files does not answer, it
raises Unreachable, also from `source[index]`: that ends a run, whereas any other error
counts as a failure of that example alone.

A source may also have these:

- `sizes()`, int32 [N, 2], (height, width) of every image in pixels, from an index or
  the headers and without decoding; (0, 0) where that cannot be read. Buckets need it.
- `column_names` and `columns(names)`, name -> array [N]: metadata for filters. Numbers
  are float64 with NaN for missing values, the rest is bool, or object with None;
  "width" and "height" are columns of every source that has `sizes`.
- `make_order(seed)`, an `orders.order.Order`, if the order is not a plain shuffle.
- `skipped`, a list of (where, why) of what was left out on opening. It is logged, and
  counted with what cannot be read later.
- `remote`, true if its examples come over the network: a worker then waits for several
  at once.
- `encoded`, true if examples already have the form of batches: nothing is decoded,
  cropped or made from them. Then `draw(index, rng, flip)` may return one of several
  versions of an example in place of `source[index]`: `flip` is whether it may be
  mirrored, never so in an evaluation, and `rng` is a NumPy generator that depends on
  the example's position in the stream. `draw_batch(indices, rngs, flip)` may return the
  examples of a batch at once, as arrays [B, ...], equal to those of `draw`; without
  flip, `rngs` may be empty.

A wrapper of a source (`Subset`) passes all of these on, except the order.
"""

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from ldm_jax.annotations import Integer, Shaped
from ldm_jax.config import suggest
from ldm_jax.data.encoded import LatentSource
from ldm_jax.data.filters import Filter
from ldm_jax.data.filters.tables import SIZES, with_sizes
from ldm_jax.data.folder import FolderSource
from ldm_jax.data.orders.mixture import MixtureSource
from ldm_jax.data.prepared import TfdsSource
from ldm_jax.data.tables import HuggingFaceSource, ParquetSource
from ldm_jax.data.tar import TarSource
from ldm_jax.errors import ConfigError


def make_record(
    source: Any, example: Mapping[str, Shaped[Any, "..."]]
) -> dict[str, Any]:
    """Records what data a run is trained on, to be compared when it resumes.

    Args:
      source: Opened source.
      example: Batch key -> array [1, ...] of the image, the label and the inputs.

    Returns:
      JSON-like dict: "num_examples", "num_classes", "class_names", "fingerprint", and
      "shapes", batch key -> [dtype, shape without the batch axis].
    """
    fingerprint = getattr(source, "fingerprint", None)
    names = source.class_names
    return {
        "num_examples": len(source),
        "num_classes": source.num_classes,
        "class_names": None if names is None else [str(name) for name in names],
        "fingerprint": None if fingerprint is None else fingerprint(),
        "shapes": {
            key: [str(value.dtype), list(value.shape[1:])]
            for key, value in example.items()
            if value.dtype.kind in "biuf"
        },
    }


class Change(NamedTuple):
    """A difference between data and those of an earlier run.

    Attributes:
      text: Description.
      fits: Whether a model trained on the earlier data can be trained further on these.
    """

    text: str
    fits: bool


def compare_records(
    now: Mapping[str, Any], then: Mapping[str, Any], by_class: bool = True
) -> list[Change]:
    """Compares the data of two runs.

    Args:
      now: Result of `make_record`.
      then: That of an earlier run; keys that it lacks are not compared.
      by_class: Whether the model is conditioned on the class.

    Returns:
      The changes, those that the model does not fit first.
    """
    found = _classes(now, then, by_class) + _shapes(now, then)
    if _changed(now, then, "num_examples"):
        count = f"{now['num_examples']:,} images, {then['num_examples']:,} then"
        found.append(Change(count, True))
    elif _changed(now, then, "fingerprint"):
        found.append(Change("as many images, but other ones", True))
    return sorted(found, key=lambda change: change.fits)


def _changed(now, then, key):
    return None not in (now.get(key), then.get(key)) and now[key] != then[key]


def _classes(now, then, by_class):
    """Classes that were added, removed, renamed or renumbered."""
    counts = [record.get("num_classes") for record in (now, then)]
    names = [list(record.get("class_names") or ()) for record in (now, then)]
    gone, new = (
        [name for name in one if name not in set(other)]
        for one, other in (names[::-1], names)
    )
    named = [f"gone: {_some(gone)}"] * bool(gone) + [f"new: {_some(new)}"] * bool(new)
    named = f" ({', '.join(named)})" if named else ""
    if "num_classes" in then and counts[0] != counts[1]:
        text = f"{counts[0] or 'no'} classes, {counts[1] or 'none'} then{named}"
        return [Change(text, not by_class)]
    if not all(names):
        return []
    numbers = {name: k for k, name in enumerate(names[1])}
    for k, name in enumerate(names[0]):
        if numbers.get(name, k) != k:
            text = f"class {name} is number {k}, was {numbers[name]}{named}"
            return [Change(text, not by_class)]
    return [Change(f"classes were renamed{named}", True)] if named else []


def _some(names, most=5):
    more = [f"{len(names) - most} more"] if len(names) > most else []
    return ", ".join([*names[:most], *more])


def _shapes(now, then):
    """Inputs whose type or shape changed."""
    here, there = (record.get("shapes") or {} for record in (now, then))
    changes = []
    for key in sorted(here.keys() & there.keys()):
        (dtype, shape), (old_dtype, old_shape) = here[key], there[key]
        if (dtype, shape) == (old_dtype, old_shape):
            continue
        # Weights depend on the channels, not on the size.
        fits = dtype == old_dtype and len(shape) == len(old_shape)
        if fits and not dtype.startswith("int"):
            fits = shape[-1:] == old_shape[-1:]
        text = f"{key} is {dtype} {shape}, was {old_dtype} {old_shape}"
        changes.append(Change(text, fits))
    return changes


class Subset:
    """Some examples of a source; a source itself, with the attributes of the other one.

    The source's own order is dropped, as it is one of all examples.
    """

    def __init__(
        self, source: Any, indices: Sequence[int] | Integer[np.ndarray, " count"]
    ) -> None:
        """Selects the examples.

        Args:
          source: Source of examples.
          indices: Their positions in it.
        """
        self._source, self._indices = source, indices

    def __len__(self):
        return len(self._indices)

    def __getitem__(self, index):
        return self._source[int(self._indices[index])]

    def __getattr__(self, name):
        # Optional attributes; unpickling looks some up before `_source` is set.
        if name.startswith("_") or name == "make_order":
            raise AttributeError(name)
        value = getattr(self._source, name)
        if name in _CHOOSE:
            return functools.partial(_CHOOSE[name], value, np.asarray(self._indices))
        if callable(value):
            raise AttributeError(name)
        return value

    def describe(self, index: int) -> str:
        """Names an example, for messages.

        Args:
          index: Its position.

        Returns:
          The source's name of it.
        """
        return self._source.describe(int(self._indices[index]))

    @property
    def draw(self) -> Callable[..., dict[str, Any]]:
        """The source's `draw` on these examples; absent if the source has none.

        Returns:
          (index, rng, flip) -> example.
        """
        draw = self._source.draw
        return lambda index, rng, flip: draw(int(self._indices[index]), rng, flip)

    @property
    def draw_batch(self) -> Callable[..., dict[str, Any]]:
        """The source's `draw_batch` on these examples; absent if the source has none.

        Returns:
          (indices, rngs, flip) -> batch.
        """
        draw, chosen = self._source.draw_batch, np.asarray(self._indices)
        return lambda indices, rngs, flip: draw(chosen[indices], rngs, flip)


class Reclassed(Subset):
    """A source with its classes numbered as those of another; a source itself.

    Attributes:
      num_classes: Number of classes of the other source, or None.
      class_names: Their names, or None.
    """

    def __init__(self, source: Any, other: Any) -> None:
        """Maps the classes of a source to those of another, by name if they have names.

        Args:
          source: Source of examples that have classes.
          other: Source with all of these classes.

        Raises:
          ValueError: If a class is not one of the other source.
        """
        super().__init__(source, range(len(source)))
        self.num_classes, self.class_names = other.num_classes, other.class_names
        own, known = source.class_names, other.class_names
        if (own is None) != (known is None) and other.num_classes is not None:
            raise ValueError(
                "its classes have names, and those of the training data have none, or "
                "the other way round"
            )
        if own is None or known is None:
            own = known = range(max(source.num_classes, other.num_classes or 0))
            known = known[: other.num_classes]
        gone = [str(name) for name in own if name not in set(known)]
        if gone and other.num_classes is not None:
            raise ValueError(
                f"its {_some(gone)} are none of the {other.num_classes} classes of the "
                "training data"
            )
        numbers = {name: number for number, name in enumerate(known)}
        self._numbers = [numbers.get(name) for name in own]

    def __getitem__(self, index):
        example = super().__getitem__(index)
        if self.num_classes is None or "label" not in example:
            return {key: value for key, value in example.items() if key != "label"}
        return example | {"label": self._numbers[int(example["label"])]}


def _choose_columns(columns, indices, names):
    return {name: column[indices] for name, column in columns(names).items()}


def _choose_fingerprint(fingerprint, indices):
    digest = hashlib.blake2b(fingerprint().encode(), digest_size=16)
    digest.update(indices.astype(np.int64).tobytes())
    return digest.hexdigest()


# Method of a source -> its result for a subset of the examples.
_CHOOSE = {
    "sizes": lambda sizes, indices: sizes()[indices],
    "columns": _choose_columns,
    "fingerprint": _choose_fingerprint,
}


def keep(source: Any, condition: str, key: str = "data.filter") -> Subset:
    """Keeps the examples that satisfy a condition on their metadata.

    Args:
      source: Source of examples, with columns.
      condition: See `filters.expressions`.
      key: Config key of the condition, for messages.

    Returns:
      A source.

    Raises:
      ConfigError: If the condition cannot be parsed, names an unknown column, or no
        example satisfies it.
    """
    name = f"{key}={condition!r}"
    try:
        test = Filter(condition)
        known, columns = _columns_of(source)
        for column in test.names:
            if not known:
                raise ValueError(
                    f"there is no {column}: this source knows nothing of its examples "
                    "without reading them; leave the filter out, or take another source"
                )
            if column not in known:
                raise ValueError(f"there is no {column}; {suggest(column, known)}")
        fits = test(columns(test.names) if test.names else {}, len(source))
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from error
    kept = np.flatnonzero(fits)
    # Commands only show warnings and above.
    logging.warning("%s keeps %d of %d examples", name, len(kept), len(source))
    if not len(kept):
        raise ConfigError(f"{name} keeps none of {len(source):,} examples")
    return Subset(source, kept.astype(np.min_scalar_type(len(source))))


def _columns_of(source):
    """Columns of a source: (their names, function that reads some of them)."""
    if hasattr(source, "column_names"):
        return tuple(source.column_names), source.columns
    if not hasattr(source, "sizes"):
        return (), None
    return SIZES, functools.partial(with_sizes, source.sizes, None)


def require_images(source: Any, advice: str) -> None:
    """Raises an error if data are encoded where images are needed.

    Args:
      source: Opened source.
      advice: What to do instead, for the message.

    Raises:
      ConfigError: If its examples have no images.
    """
    if getattr(source, "encoded", False):
        raise ConfigError(f"data.source=latents has latents and no images: {advice}")


def left_out(source: Any) -> list[str]:
    """Lists what was left out when a source was opened.

    Args:
      source: Opened source.

    Returns:
      "WHERE: WHY" of each, such as a damaged shard or a folder that cannot be listed;
      the number of examples in it is unknown.
    """
    return [f"{where}: {why}" for where, why in getattr(source, "skipped", ())]


def part(source: Any, start: int = 0, count: int | None = None) -> Subset:
    """Takes consecutive examples of a source.

    Args:
      source: Source of examples.
      start: Position of the first one.
      count: How many, or all that follow if there are fewer; None for all.

    Returns:
      A source.
    """
    indices = range(start, len(source))
    return Subset(source, indices if count is None else indices[:count])


def spread(source: Any, count: int | None) -> Subset:
    """Takes examples evenly spaced over a source, as it may be sorted by class.

    Args:
      source: Source of examples.
      count: How many, or all if there are fewer; None for all.

    Returns:
      A source.
    """
    size = len(source)
    count = size if count is None else min(count, size)
    return Subset(source, np.arange(count) * size // count)


SOURCES = {
    "tfds": TfdsSource,
    "folder": FolderSource,
    "tar": TarSource,
    "parquet": ParquetSource,
    "huggingface": HuggingFaceSource,
    "mixture": MixtureSource,
    "latents": LatentSource,
}
