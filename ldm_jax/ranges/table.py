"""The table of checks by section of a config, and functions that apply it."""

from collections.abc import Mapping
from typing import Any

from ldm_jax.ranges.checks import Check, check_value, real, text
from ldm_jax.ranges.data_sections import BUCKETS, DATA, INPUTS
from ldm_jax.ranges.networks import CONDITIONS, DISCRIMINATOR, FIRST_STAGE, UNET
from ldm_jax.ranges.sample_section import SAMPLE
from ldm_jax.ranges.shared import SEED
from ldm_jax.ranges.training_sections import (
    EVAL,
    EVAL_WEIGHTS,
    LOSS,
    MESH,
    OPTIMIZER,
    SCHEDULE,
    TRAIN,
)

# Section -> key -> check; "*" stands for any name chosen by the user.
SECTIONS: dict[str, dict[str, Check]] = {
    "": {"stage": text(), "seed": SEED},
    "data": DATA,
    "data.buckets": BUCKETS,
    "data.inputs.*": INPUTS,
    # A part of a mixture has the keys of the section, and a weight.
    "data.parts.*": DATA
    | {"weight": real(0, 1e12, "(", none="the number of examples")},
    "first_stage": FIRST_STAGE,
    "discriminator": DISCRIMINATOR,
    "conditions.*": CONDITIONS,
    "backbone": UNET,
    "classifier": UNET,
    "schedule": SCHEDULE,
    "loss": LOSS,
    "train": TRAIN,
    "train.optimizer": OPTIMIZER,
    "train.mesh": MESH,
    "sample": SAMPLE,
    "eval": EVAL,
    "eval.weights": EVAL_WEIGHTS,
}


def find(section: str, key: str) -> Check | None:
    """Finds the check of a key.

    Args:
      section: Dotted name of its section; "" for top-level keys.
      key: The key.

    Returns:
      The check, or None if the table has no row for the key.
    """
    for pattern, rows in SECTIONS.items():
        parts, names = pattern.split("."), section.split(".")
        if len(parts) == len(names) and all(
            part in ("*", name) for part, name in zip(parts, names, strict=True)
        ):
            return rows.get(key)
    return None


def check_section(section: Mapping[str, Any], name: str) -> None:
    """Checks the values of a section for which the table has rows.

    Args:
      section: Its keys and values.
      name: Its dotted name; "" for top-level keys.

    Raises:
      ConfigError: If a value is out of its range.
    """
    for key, value in section.items():
        check = find(name, key)
        if check is not None:
            check_value(check, value, f"{name}.{key}" if name else key)


def check_fields(constructor: Any, section: Mapping[str, Any], name: str) -> None:
    """Checks the values of a section that are passed to a constructor.

    Args:
      constructor: A class with checks of its fields as `field_ranges` (field -> Check);
        or a class or function of this package, for which the table is used. Others, in
        which names may have other meanings, check their values themselves.
      section: Its keys and values.
      name: Its dotted name.

    Raises:
      ConfigError: If a value is out of its range.
    """
    own = getattr(constructor, "field_ranges", None)
    if own is not None:
        for key in section.keys() & own.keys():
            check_value(own[key], section[key], f"{name}.{key}")
    elif getattr(constructor, "__module__", "").startswith(_PACKAGE):
        check_section(section, name)


_PACKAGE = __name__.partition(".")[0] + "."
