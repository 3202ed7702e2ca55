"""Opens the data of the config section `data`: a source, a filter, a mixture."""

import inspect
import itertools
from collections.abc import Mapping
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from ldm_jax.config import choose, suggest, to_dict
from ldm_jax.data.inputs import make_inputs, needed_keys, optional_keys
from ldm_jax.data.load_batch import LOADER_OPTIONS
from ldm_jax.data.orders.mixture import Part
from ldm_jax.data.sources import SOURCES, Reclassed, keep
from ldm_jax.errors import ConfigError, DataError
from ldm_jax.images.pixels import SHOWN
from ldm_jax.ranges import check_section
from ldm_jax.store import raise_if_silent

Section = Mapping[str, Any] | ConfigDict

_SECTION_KEYS = (
    *("source", "split", "eval_split", "eval_name"),
    *("inputs", "filter", "buckets", SHOWN),
)

# Number of examples left out on opening that are named in the log.
_NAMED = 20


def open_source(data: Section, split: str) -> Any:
    """Opens a split of the data set that the config section `data` describes.

    Args:
      data: Section with "source" (row of SOURCES) and that source's options; the
        loader's options and the names of the splits are ignored. The source is asked
        for the keys that "inputs" need, besides those of its option "keys".
      split: Name of the split in the source.

    Returns:
      A source; see `sources.py`.

    Raises:
      ConfigError: On an unknown key or a data set that cannot be opened.
      DataError: If some of its examples cannot be read and `on_error` is "raise".
    """
    section = to_dict(data)
    check_sources(section)
    source = _open(section, split)
    skipped = list(getattr(source, "skipped", ()))
    if skipped and section.get("on_error") == "raise":
        where, reason = skipped[0]
        raise DataError(
            f"cannot read {where}: {reason} ({len(skipped)} such examples); repair or "
            'remove it, or set data.on_error="skip"'
        )
    for where, reason in skipped[:_NAMED]:
        logging.warning("skipped %s: %s", where, reason)
    if len(skipped) > _NAMED:
        logging.warning("skipped %d more such examples", len(skipped) - _NAMED)
    return source


def check_sources(section: Section, name: str = "data") -> None:
    """Checks a section's source options before any source is opened.

    Args:
      section: Config section `data`, or that of a part of a mixture.
      name: Name of the section, for messages.

    Raises:
      ConfigError: On an unknown source or key, or a mixture without parts.
    """
    section = to_dict(section)
    make = choose(SOURCES, section.get("source"), f"{name}.source")
    known = {option for row in SOURCES.values() for option in _options_of(row)}
    known |= {*LOADER_OPTIONS, *_SECTION_KEYS}
    for key in section:
        if key not in known:
            raise ConfigError(f"{name}.{key} is not an option; {suggest(key, known)}")
    own = _options_of(make)
    if section.get("eval_name"):
        _check_eval_name(section, name, own)
    if "parts" in own:
        _check_parts(section, name)


def _check_eval_name(section, name, own):
    if "parts" in own:
        raise ConfigError(
            f"{name}.eval_name is one for each part: set {name}.parts.NAME.eval_name"
        )
    if "validation_fraction" not in own:
        raise ConfigError(
            f"{name}.eval_name: {name}.source={section['source']} has splits of its "
            f"own; name what is held out by {name}.eval_split"
        )
    if section.get("eval_split", "") in ("", None, section.get("split")):
        raise ConfigError(
            f"{name}.eval_name names held-out data, and {name}.eval_split is "
            f'"{section.get("eval_split") or ""}", with {name}.split='
            f'"{section.get("split")}": set eval_split to "validation"'
        )


def _check_parts(section, name):
    shared, parts = _shared(section), section.get("parts") or {}
    if not parts:
        raise ConfigError(
            f"a mixture has no parts: give {name}.parts, as "
            f"--config.{name}.parts.NAME.source=folder"
        )
    for part, entry in parts.items():
        where, entry = f"{name}.parts.{part}", to_dict(entry)
        # Parts of nested mixtures are checked against the same rows.
        check_section(entry, f"data.parts.{part}")
        entry.pop("weight", None)
        for key in entry:
            if key in (*LOADER_OPTIONS, "inputs", "buckets", SHOWN):
                raise ConfigError(
                    f"{where}.{key} is one for the whole mixture: set data.{key}"
                )
        check_sources(shared | entry, where)


def held_out_notes(section: Section, name: str = "data") -> list[str]:
    """Finds sources that train on held-out data, by the names of their splits.

    Args:
      section: Config section `data`, or that of a part of a mixture.
      name: Name of the section, for messages.

    Returns:
      A warning for each such source; [] if there is none.
    """
    section = to_dict(section)
    if section["source"] == "mixture":
        shared, parts = _shared(section), sorted(section["parts"].items())
        found = (
            held_out_notes(shared | to_dict(entry), f"{name}.parts.{part}")
            for part, entry in parts
        )
        return list(itertools.chain.from_iterable(found))
    split, held_out = section.get("split"), section.get("eval_split")
    is_known = isinstance(split, str) and isinstance(held_out, str) and held_out
    if not is_known or section.get("eval_name") or not _share(split, held_out):
        return []
    return [
        f"warning: {name}.split={split} trains on images of {name}.eval_split="
        f"{held_out}, so evaluation says nothing of others: name splits that have none "
        f"in common, or none to hold out ({name}.eval_split=)"
    ]


def _share(split, other):
    """Whether two splits share examples; slices of the same split are not compared."""
    ours, theirs = (
        [name.strip() for name in names.split("+")] for names in (split, other)
    )
    sides = (ours, theirs), (theirs, ours)
    return any(
        name in wholes or _whole(name) in (*wholes, "all")
        for names, wholes in sides
        for name in names
    )


def _whole(name):
    """Name of the split of which a name is all or a slice."""
    return name.partition("[")[0]


def _shared(section):
    """Options that the parts of a mixture inherit from its section."""
    return {k: v for k, v in section.items() if k not in ("source", "parts")}


def _open(section, split, name="data"):
    """Opens the source of a section, or of a part of a mixture."""
    elsewhere = section.get("eval_name")
    if not elsewhere:
        return _open_one(section, split, name)
    if split != section.get("eval_split"):
        # Nothing needs to be held out of the training data.
        return _open_one(section | {"validation_fraction": None}, split, name)
    held_out = _open_one(section | {"name": elsewhere}, "all", f"{name}.eval_name")
    if held_out.num_classes is None:
        return held_out
    # The other set may lack classes, and would then number the others differently.
    trained = _open(section, section.get("split", "train"), name)
    try:
        return Reclassed(held_out, trained)
    except ValueError as error:
        raise ConfigError(f"{name}.eval_name: {error}") from error


def _open_one(section, split, name):
    make = SOURCES[section["source"]]
    own = _options_of(make)
    # An option of another source is not an error: `source` alone may be overridden.
    options = {key: value for key, value in section.items() if key in own}
    if split != section.get("split", split):
        # Only training data are mirrored.
        options.pop("flip", None)
    inputs = make_inputs(section.get("inputs"))
    needed = needed_keys(inputs)
    if needed:
        options["keys"] = sorted({*needed, *options.get("keys", ())} - {"label"})
    if "optional" in own:
        optional = {*optional_keys(inputs), *options.get("optional", ())}
        options["optional"] = sorted(optional)
    if "parts" in own:
        options = {"parts": _open_parts(section, split, name)}
    try:
        source = make(split=split, **options)
    except Exception as error:
        raise_if_silent(f"{name}.name={section.get('name')}", error)
        if not isinstance(error, TypeError | ValueError):
            raise
        raise ConfigError(f"{name}: {error}") from error
    # The parts of a mixture are filtered already, and some sources do it themselves.
    asked = {"parts", "filter"}.intersection(own)
    condition = None if asked else section.get("filter")
    return keep(source, condition, f"{name}.filter") if condition else source


def _open_parts(section, split, name):
    """Opens the parts of a mixture that have the split: name -> Part."""
    held_out = split == section.get("eval_split") != section.get("split")
    parts = {}
    for part, entry in sorted(section["parts"].items()):
        entry = to_dict(entry)
        weight = entry.pop("weight", None)
        own = entry.get("eval_split" if held_out else "split", split)
        if own:
            opened = _open(_shared(section) | entry, own, f"{name}.parts.{part}")
            parts[part] = Part(opened, weight)
    if not parts:
        # The ranges of the config require a training split of every part.
        names = sorted(section["parts"])
        raise ConfigError(
            f'{name}.eval_split="{split}" holds data out, and no part of the mixture '
            f'does (eval_split is "" in {", ".join(names)}): set {name}.parts.'
            f"{names[0]}.eval_split, or {name}.eval_split= to hold nothing out"
        )
    return parts


def _options_of(source):
    parameters = inspect.signature(source).parameters
    return [name for name in parameters if name != "split"]
