"""Decides what to read of examples in tar shards: members and fields of JSON."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ldm_jax.annotations import Bool, Int
from ldm_jax.config import suggest
from ldm_jax.data.labels import find_class
from ldm_jax.data.modalities import modality_of
from ldm_jax.data.sidecars import (
    ARRAY_SUFFIX,
    IMAGE_SUFFIXES,
    Sidecar,
    find_sidecars,
)
from ldm_jax.data.tar.index_file import IndexFile
from ldm_jax.data.tar.scan import LABELS

JSON, CLASS = "json", "cls"

# A number of this many digits is too large for a label.
_MOST_DIGITS = 18

# The largest label; and the number from which on a label is an outlier if there are
# fewer than a thousandth as many distinct ones: it would set the size of the model's
# class embedding.
_MOST_LABEL, _FAR, _SPREAD = np.iinfo(np.int32).max, 10**6, 1000


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to read of each example.

    Attributes:
      images: Suffixes of images, without the dot, the preferred ones first.
      members: Suffix -> Sidecar of the other members to read.
      fields: Key of the example -> field of `.json`.
      label: Column that holds the class, or None: LABELS is `.cls`.
      optional: Keys that an example may lack.
    """

    images: tuple[str, ...]
    members: Mapping[str, Sidecar]
    fields: Mapping[str, str]
    label: str | None
    optional: frozenset[str] = frozenset()

    @property
    def needed(self) -> tuple[str, ...]:
        """Suffixes that every example must have besides an image."""
        members = {
            suffix
            for suffix, sidecar in self.members.items()
            if not self.optional.issuperset(sidecar.keys)
        }
        more = {CLASS} if self.label == LABELS else set()
        fields = not self.optional.issuperset(self.fields)
        if fields or self.label not in (None, LABELS):
            more.add(JSON)
        return tuple(sorted(members | more))

    @property
    def read(self) -> tuple[str, ...]:
        """Suffixes to read besides an image, if the example has them."""
        fields = {JSON} if self.fields else set()
        return tuple(sorted({*self.needed, *self.members, *fields}))


def make_plan(
    headers: Sequence[Mapping[str, Any]],
    keys: Sequence[str],
    image_key: str | None,
    label_key: str | None,
    caption_field: str | None,
) -> Plan:
    """Finds the requested keys in the shards.

    Args:
      headers: Headers of the shards' indexes.
      keys: Keys of the example besides image and label.
      image_key: Suffix of the image; None takes any image, or arrays if there are no
        images.
      label_key: "cls", or the field of `.json` that holds the class; None takes
        `.cls` if there is one, "" takes none.
      caption_field: Field of `.json` that holds the caption; None takes `.txt`, or the
        field "caption" if there is none.

    Returns:
      A Plan.

    Raises:
      ValueError: If no shard has one of them.
    """
    suffixes = {suffix for header in headers for suffix in header["suffixes"]}
    fields = {field for header in headers for field in header["fields"]}
    images = tuple(suffix[1:] for suffix in IMAGE_SUFFIXES)
    if image_key:
        images = (image_key.removeprefix(".").lower(),)
    elif ARRAY_SUFFIX[1:] in suffixes and not suffixes.intersection(images):
        # Arrays are the images if there are no others, as in folders.
        images = (ARRAY_SUFFIX[1:],)
    if not suffixes.intersection(images):
        raise ValueError(
            f"no member of the shards ends in {_listed(images)}; they end in "
            f"{_listed(suffixes)}: give data.image_key, the suffix of the images "
            "from the first dot of their names on"
        )
    members, found = {}, {}
    for key in keys:
        if key == "caption" and caption_field:
            if caption_field not in fields:
                raise ValueError(
                    f'no .json has the field caption_field="{caption_field}"; '
                    f"{_advise(caption_field, fields)}"
                )
            found[key] = caption_field
            continue
        sidecar = _find_member(key, suffixes)
        if sidecar is not None:
            suffix = sidecar.suffix[1:]
            held = members[suffix].keys if suffix in members else ()
            members[suffix] = sidecar._replace(keys=(*held, *sidecar.keys))
        elif key in fields:
            found[key] = key
        else:
            raise ValueError(
                f'the shards have no "{key}": members end in {_listed(suffixes)}'
                + (f", fields of .json are {_listed(fields)}" if fields else "")
            )
    label = _find_label(label_key, suffixes, fields)
    return Plan(images, members, found, label)


def _find_member(key, suffixes):
    """The member that holds a key, or None."""
    (sidecar,) = find_sidecars([key])
    # Suffixes are lower case in the index.
    sidecar = sidecar._replace(suffix=sidecar.suffix.lower())
    if sidecar.suffix[1:] in suffixes:
        return sidecar
    # Text under a custom key, such as a second caption.
    suffix = f"{key}.txt".lower()
    if modality_of(key) is None and suffix in suffixes:
        return Sidecar(f".{suffix}", (key,), "caption")
    return None


def _find_label(label_key, suffixes, fields):
    if label_key == "":
        return None
    if label_key in (None, CLASS, f".{CLASS}"):
        if CLASS in suffixes:
            return LABELS
        if label_key is None:
            return None
    if label_key in fields:
        return label_key
    raise ValueError(
        f'label_key="{label_key}" is no field of .json; {_advise(label_key, fields)}, '
        f"or {CLASS} for members .{CLASS}"
    )


def _advise(name, fields):
    return suggest(name, fields) if fields else "there are no .json members"


def _listed(words, most=20):
    words = sorted(words)
    more = [f"{len(words) - most} more"] if len(words) > most else []
    return ", ".join([f".{word}" if word else word for word in words[:most]] + more)


def find_images(index: IndexFile, plan: Plan) -> Int[np.ndarray, " N"]:
    """Finds the image of each example of a shard.

    Args:
      index: Index of the shard.
      plan: What to read.

    Returns:
      int64 [N], row of "members"; -1 if an example has no image.
    """
    starts = index.read("starts").astype(np.int64)
    suffixes = index.read("members")["suffix"]
    none = len(plan.images)
    names = index.header["suffixes"]
    order = [plan.images.index(n) if n in plan.images else none for n in names]
    if len(starts) == 1:
        return np.empty(0, np.int64)
    # The smallest rank of each example, which also encodes the row.
    rows = np.arange(len(suffixes))
    ranks = np.array(order, np.int64)[suffixes] * len(suffixes) + rows
    best = np.minimum.reduceat(ranks, starts[:-1])
    return np.where(best >= none * len(suffixes), -1, best % len(suffixes))


def find_complete(
    index: IndexFile, plan: Plan
) -> tuple[Bool[np.ndarray, " N"], list[tuple[str, Int[np.ndarray, " n"]]]]:
    """Finds the examples of a shard that have all that is needed.

    Args:
      index: Index of the shard.
      plan: What to read.

    Returns:
      (mask bool [N], list of (what is missing, examples that lack it int64 [n])).
    """
    header, count = index.header, len(index.read("starts")) - 1
    counts = dict(zip(header["suffixes"], header["counts"], strict=True))
    whole, lacking = np.ones(count, bool), []
    parts = []
    if not any(counts.get(suffix) == count for suffix in plan.images):
        parts.append(("image", find_images(index, plan) >= 0))
    owners = None
    for suffix in plan.needed:
        if counts.get(suffix, 0) == count:
            continue
        if owners is None:
            starts = index.read("starts").astype(np.int64)
            owners = np.repeat(np.arange(count), np.diff(starts))
            suffixes = index.read("members")["suffix"]
        has = np.zeros(count, bool)
        if suffix in counts:
            has[owners[suffixes == header["suffixes"].index(suffix)]] = True
        parts.append((f".{suffix}", has))
    for what, has in parts:
        lacking.append((f"has no {what}", np.flatnonzero(whole & ~has)))
        whole &= has
    return whole, lacking


def find_classes(labels: Iterable[Any]) -> tuple[tuple[str, ...] | None, int]:
    """Finds the classes of labels.

    Numbers that cannot be classes are ignored: those that are not whole or below 0, and
    those of a million or more that are over a thousand times the number of distinct
    labels. Classes are numbered from 0 to the largest number that is left.

    Args:
      labels: Numbers, bools or text; None and NaN are ignored.

    Returns:
      (names, or None if labels are numbers; number of classes).

    Raises:
      ValueError: If there are no labels, or none is a class.
    """
    found = set(labels)
    texts = {v for v in found if isinstance(v, str) and v}
    numbers = {v for v in found if isinstance(v, int | float) and v == v}
    if texts and (numbers or not all(text.isdecimal() for text in texts)):
        names = tuple(sorted(texts | {f"{number:g}" for number in numbers}))
        return names, len(names)
    numbers |= {int(text[:_MOST_DIGITS]) for text in texts}
    if not numbers:
        raise ValueError('no example has a label; give label_key="" for no labels')
    # Infinity exceeds the maximum, so int() is not called on it.
    whole = sorted({n for n in numbers if 0 <= n <= _MOST_LABEL and n == int(n)})
    while whole and whole[-1] >= max(_FAR, _SPREAD * len(whole)):
        whole.pop()
    if not whole:
        raise ValueError(
            f"a label is {min(numbers):g}; labels are whole numbers from 0 on, below a "
            "million or a thousand times the number of different ones"
        )
    return None, int(whole[-1]) + 1


def find_strays(labels: Iterable[Any], count: int) -> set[Any]:
    """Finds the labels that are not one of a number of classes.

    Args:
      labels: Numbers, bools or text; None and NaN are ignored.
      count: Number of classes.

    Returns:
      The labels that are not a class, without None and NaN.
    """
    strays = set()
    for label in labels:
        try:
            if label is not None and label == label:
                class_of(label, (), count)
        except ValueError:
            strays.add(label)
    return strays


def class_of(value: Any, names: Sequence[str] | None, count: int) -> int:
    """Returns the number of a label's class.

    Args:
      value: Content of `.cls` or of a field of `.json`.
      names: Names of the classes, or None.
      count: Number of classes.

    Returns:
      Number of the class.

    Raises:
      ValueError: If it is not a class.
    """
    if isinstance(value, bool | float) and value == value // 1:
        value = int(value)
    found = find_class(value, names or ()) if isinstance(value, int | str) else None
    if found is None or not 0 <= found < count:
        shown = repr(value)[:40]
        raise ValueError(f"its label {shown} is none of the {count:,} classes")
    return found
