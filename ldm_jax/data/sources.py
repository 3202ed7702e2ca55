"""Data sources: where examples come from, by the name of `data.source`.

A source is a class that is opened with `split` and the options of its own that the
config section `data` gives. It has

- `len(source)` and `source[index]`, a dict with "image" (encoded bytes, or a uint8
  array [H, W, C]), "label" (int) where there are classes, and the further `keys`;
- `describe(index)`, which names the example in a message;
- `num_classes` and `class_names`, None where there are none;
- `fingerprint()`, a string that is another for other data, cheap to compute; a source
  may be without, then only what is above can be compared between runs.

It raises ValueError where it cannot be opened, and can be pickled, as every worker
process gets a copy. It never imports jax. Where its files lie in a store that does not
answer, it raises Unreachable, also from `source[index]`: that ends a run, whereas any
other error of an example is counted as its own fault.

What more a source may have, and what follows where it has not:

- `sizes()`, int32 [N, 2], (height, width) of every image in pixels, from an index or
  the headers and without decoding; (0, 0) where that cannot be read. Buckets need it.
- `column_names` and `columns(names)`, name -> array [N]: metadata for filters. Numbers
  are float64 with NaN for what is missing, the rest is bool, or object with None;
  "width" and "height" are columns of every source that has `sizes`.
- `make_order(seed)`, an `orders.order.Order`, where that is no plain shuffle.
- `skipped`, a list of (where, why): what opening left out. It is named, and counted
  with what cannot be read later.
- `remote`, true where its examples come over the network: a worker waits for several.
- `encoded`, true where examples are what batches hold already: nothing is decoded, cut
  or made of them. Then `draw(index, rng, flip)` may give one of several versions of an
  example in place of `source[index]`: `flip` says whether it may be mirrored, which it
  never is in an evaluation, and `rng` is a NumPy generator that follows from the
  example's place in the stream. `draw_batch(indices, rngs, flip)` may give the examples
  of a batch at once, as arrays [B, ...], the same that `draw` gives; without flip there
  may be no generators.

What wraps a source (`Subset`) hands all of these on, except the order.
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
    """Records what data a run is trained on, to be compared when it goes on.

    Args:
      source: Opened source.
      example: Batch key -> array [1, ...] of the image, the label and the inputs.

    Returns:
      JSON-like dict: "num_examples", "num_classes", "class_names", "fingerprint", and
      "shapes", batch key -> [type, axes without that of the batch].
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
    """A way in which data differ from those of an earlier run.

    Attributes:
      text: What it is, in words.
      fits: Whether a model that was trained on the earlier data can go on with these.
    """

    text: str
    fits: bool


def compare_records(
    now: Mapping[str, Any], then: Mapping[str, Any], by_class: bool = True
) -> list[Change]:
    """Compares the data of two runs.

    Args:
      now: What `make_record` gives.
      then: The same of an earlier run; what it lacks is not compared.
      by_class: Whether the model knows the classes of images.

    Returns:
      The changes, those that cannot be gone on with first.
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
    """Classes that came, went, or have another number."""
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
    """Inputs of another type or shape."""
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
    """Some examples of a source; a source itself, with what the other one has.

    An order of the source's own goes, as it is one of all examples.
    """

    def __init__(
        self, source: Any, indices: Sequence[int] | Integer[np.ndarray, " count"]
    ) -> None:
        """Takes them.

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
        # What sources may be without; copies are asked before they have a source.
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
          What the source calls it.
        """
        return self._source.describe(int(self._indices[index]))

    @property
    def draw(self) -> Callable[..., dict[str, Any]]:
        """How encoded examples are taken; absent where the source has no such way.

        Returns:
          (index, rng, flip) -> example.
        """
        draw = self._source.draw
        return lambda index, rng, flip: draw(int(self._indices[index]), rng, flip)

    @property
    def draw_batch(self) -> Callable[..., dict[str, Any]]:
        """How a batch of encoded examples is taken; absent likewise.

        Returns:
          (indices, rngs, flip) -> batch.
        """
        draw, chosen = self._source.draw_batch, np.asarray(self._indices)
        return lambda indices, rngs, flip: draw(chosen[indices], rngs, flip)


class Reclassed(Subset):
    """A source whose classes are those of another; a source itself.

    Attributes:
      num_classes: Number of classes of the other one, or None.
      class_names: Their names, or None.
    """

    def __init__(self, source: Any, other: Any) -> None:
        """Finds the classes of a source in another one, by their names if it has any.

        Args:
          source: Source of examples that have classes.
          other: Source with all of these classes.

        Raises:
          ValueError: If a class is none of the other source's.
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


# Method of a source -> what it gives of some of the examples.
_CHOOSE = {
    "sizes": lambda sizes, indices: sizes()[indices],
    "columns": _choose_columns,
    "fingerprint": _choose_fingerprint,
}


def keep(source: Any, condition: str, key: str = "data.filter") -> Subset:
    """Keeps the examples that fit a condition on their metadata.

    Args:
      source: Source of examples, with columns.
      condition: See `filters.expressions`.
      key: Key of the config that has it, for messages.

    Returns:
      A source.

    Raises:
      ConfigError: If the condition cannot be read, asks for what is not there, or fits
        no example.
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
    # Commands show nothing less than warnings.
    logging.warning("%s keeps %d of %d examples", name, len(kept), len(source))
    if not len(kept):
        raise ConfigError(f"{name} keeps none of {len(source):,} examples")
    return Subset(source, kept.astype(np.min_scalar_type(len(source))))


def _columns_of(source):
    """(names, function that gives some of them) of the columns of a source."""
    if hasattr(source, "column_names"):
        return tuple(source.column_names), source.columns
    if not hasattr(source, "sizes"):
        return (), None
    return SIZES, functools.partial(with_sizes, source.sizes, None)


def require_images(source: Any, advice: str) -> None:
    """Refuses data that were encoded where images are needed.

    Args:
      source: Opened source.
      advice: What to do.

    Raises:
      ConfigError: If its examples have no images.
    """
    if getattr(source, "encoded", False):
        raise ConfigError(f"data.source=latents has latents and no images: {advice}")


def left_out(source: Any) -> list[str]:
    """Names what opening a source left out.

    Args:
      source: Opened source.

    Returns:
      "WHERE: WHY" each, such as a damaged shard or a folder that cannot be listed; how
      many examples there were is not known.
    """
    return [f"{where}: {why}" for where, why in getattr(source, "skipped", ())]


def part(source: Any, start: int = 0, count: int | None = None) -> Subset:
    """Takes examples of a source, one after the other.

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
