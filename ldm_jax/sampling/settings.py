"""`settings.json`: the settings common to all samples of a folder."""

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np

from ldm_jax.errors import ConfigError
from ldm_jax.files import write_json
from ldm_jax.reading import MAX_TEXT, parse_json, read_file
from ldm_jax.store import Place, exists, raise_if_silent

SETTINGS = "settings.json"


def claim(
    outdir: Place,
    settings: Mapping[str, Any],
    follows: Collection[str] = (),
    begun: bool = False,
) -> None:
    """Records the settings in a folder, or compares them with those recorded there.

    Args:
      outdir: Path of the folder; created if needed.
      settings: Dict for JSON.
      follows: Keys that follow from the others, and that older versions did not
        record: they are added if missing.
      begun: Whether the folder holds samples.

    Raises:
      ConfigError: If the folder holds samples of other settings, or of unknown ones.
      Unreachable: If the storage does not respond.
    """
    path = outdir / SETTINGS
    # As they are read back from the file: without tuples.
    settings = json.loads(json.dumps(settings))
    if exists(path) or os.path.lexists(path):
        there = _recorded(path)
        added = {key: settings[key] for key in follows if key not in there}
        difference = first_difference(there | added, settings)
        if difference is not None:
            key, there, here = difference
            raise ConfigError(
                f"{outdir} holds samples of other settings ({key}: {there} there, "
                f"{here} here); use another --outdir"
            )
        if not added:
            return
    elif begun:
        raise ConfigError(
            f"{outdir} holds samples, but no {SETTINGS}, which says of which settings "
            "they are: use another --outdir, or remove them"
        )
    write_json(path, settings)


def first_difference(
    there: Mapping[str, Any], here: Mapping[str, Any]
) -> tuple[str, Any, Any] | None:
    """Finds the first difference between two records of settings.

    Args:
      there: Nested dict, as read from a JSON file.
      here: Likewise.

    Returns:
      (dotted key, value there, value here) of the first one, or None.
    """
    there, here = _flat(there), _flat(here)
    for key in [*here, *(there.keys() - here.keys())]:
        if there.get(key) != here.get(key):
            return key, there.get(key), here.get(key)
    return None


def _recorded(path):
    """The settings of existing samples."""
    try:
        found = parse_json(read_file(path, MAX_TEXT))
        if isinstance(found, dict):
            return found
        reason = f"it holds a {type(found).__name__}"
    except (OSError, ValueError) as error:
        raise_if_silent(path, error)
        reason = getattr(error, "strerror", None) or error
    raise ConfigError(
        f"{path} does not say of which settings the samples beside it are ({reason}): "
        "use another --outdir"
    )


def _flat(settings, before=""):
    """Flattens nested settings to dotted names."""
    flat = {}
    for key, value in settings.items():
        nested = value if isinstance(value, dict) and value else None
        name = f"{before}{key}"
        flat |= {name: value} if nested is None else _flat(nested, f"{name}.")
    return flat


def digest_json(value: Any) -> str:
    """Hashes a value, to compare it with that of another process.

    Args:
      value: JSON-serialisable value.

    Returns:
      16 hexadecimal digits.
    """
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest(tree: Any) -> str:
    """Hashes a tree of arrays, to record which weights were used.

    Args:
      tree: Tree of arrays of any shape.

    Returns:
      16 hexadecimal digits.
    """
    whole = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        whole.update(np.ascontiguousarray(leaf))
    return whole.hexdigest()[:16]
