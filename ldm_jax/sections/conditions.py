"""The section `conditions`: fills in unset options and checks consistency."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from flax import linen as nn

from ldm_jax.conditioners import CONDITIONERS
from ldm_jax.config import Section, entries_of
from ldm_jax.data.inputs import make_inputs
from ldm_jax.errors import ConfigError


def fill_conditions(
    config: Any, backbone: nn.Module | None, num_classes: int | None
) -> dict[str, dict[str, Any]]:
    """Fills in the options that entries leave unset.

    Each kind of condition declares which options follow from the data set, from the
    entry of `data.inputs` under the same key and from the backbone: see
    `ldm_jax.conditioners`.

    Args:
      config: ConfigDict with `conditions` and `data`.
      backbone: Backbone module; None if no option follows from it.
      num_classes: Number of classes of the data set; None if there are none.

    Returns:
      Batch key -> entry, plain dicts; entries of the kind "none" are left out.

    Raises:
      ConfigError: If an option is unset and cannot be derived.
    """
    entries = entries_of(config.conditions)
    inputs = config.data.get("inputs") or {}
    for key, entry in entries.items():
        # An unknown kind raises an error where the conditioner is made.
        kind = CONDITIONERS.get(entry.get("kind"))
        if "num_classes" in getattr(kind, "from_dataset", ()):
            _fill_num_classes(key, entry, num_classes)
        if hasattr(kind, "from_input"):
            _fill_from_input(key, entry, kind, inputs.get(key) or {})
        if entry.get("slot", getattr(kind, "slot", None)) == "vector":
            for option in getattr(kind, "from_backbone", ()):
                entry[option] = entry.get(option) or backbone.vector_width
    return entries


def _fill_num_classes(key, entry, num_classes):
    if entry.get("num_classes") is None:
        if not num_classes:
            raise ConfigError(
                f"conditions.{key}.num_classes is unset and the data set has no "
                "class labels; use one with labels or remove the condition"
            )
        entry["num_classes"] = num_classes
    elif num_classes and num_classes > entry["num_classes"]:
        raise ConfigError(
            f"conditions.{key}.num_classes={entry['num_classes']} but the data set "
            f"has {num_classes} classes; set it to {num_classes}"
        )


def _fill_from_input(key, entry, kind, given):
    """Fills in the options that follow from the input of a condition."""
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    unset = [
        name
        for name in kind.from_input
        if entry.get(name, defaults[name]) in (None, dataclasses.MISSING)
    ]
    if not unset:
        return
    if given.get("kind") != kind.input_kind:
        raise ConfigError(
            f"conditions.{key}.{unset[0]} is unset: give it, or the input that it "
            f"follows from, data.inputs.{key} of kind {kind.input_kind!r}"
        )
    made = make_inputs({key: given})[key]
    source = getattr(made, "tokenizer", made)
    for name in kind.from_input:
        if entry.get(name) is None:
            entry[name] = getattr(source, name)


def check_ids(
    entries: Mapping[str, Mapping[str, Any]], section: Section | None
) -> None:
    """Checks that the vocabularies of encoders cover all token ids of their inputs.

    Args:
      entries: Batch key -> entry of a conditioner, as returned by `fill_conditions`.
      section: Config section `data.inputs`.

    Raises:
      ConfigError: If a vocabulary is too small.
    """
    for key, made in make_inputs(section).items():
        known = entries.get(key, {}).get("vocab_size")
        size = getattr(getattr(made, "tokenizer", made), "vocab_size", None)
        if known is not None and size is not None and known < size:
            raise ConfigError(
                f"conditions.{key}.vocab_size={known} but the ids of data.inputs.{key} "
                f"go up to {size - 1}: set it to {size}, or take the tokenizer that "
                "the encoder was trained with"
            )
