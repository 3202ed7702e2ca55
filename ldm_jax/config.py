"""Config sections: builds objects from them, compares them, stores them as JSON.

A config is a `ConfigDict` with the sections `data`, `first_stage`, `discriminator`,
`conditions`, `backbone`, `schedule`, `loss`, `train`, `sample` and `eval`, and the
plain keys `stage` and `seed`.  The `make_*` functions unpack sections into
constructors; the code that they call never sees a config.
"""

import difflib
import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from ldm_jax import ranges
from ldm_jax.errors import ConfigError

# A section of a config, or a plain dict.
Section = ConfigDict | Mapping[str, Any]

# Stage -> config section of the network that the stage trains.
NETWORKS = {
    "autoencoder": "first_stage",
    "diffusion": "backbone",
    "classifier": "classifier",
}


def to_dict(section: Section) -> dict[str, Any]:
    """Turns a section into plain dicts.

    Args:
      section: Nested ConfigDict, or a mapping.

    Returns:
      Nested dict, a copy.
    """
    return section.to_dict() if isinstance(section, ConfigDict) else dict(section)


def entries_of(section: Section | None) -> dict[str, dict[str, Any]]:
    """Lists the entries of a section such as `conditions` or `data.inputs`.

    Args:
      section: Batch key -> {"kind": row of a table, options}; None for no entries.

    Returns:
      The same as plain dicts, without entries of the kind "none", which are disabled.
    """
    entries = {key: to_dict(entry) for key, entry in to_dict(section or {}).items()}
    return {key: entry for key, entry in entries.items() if entry.get("kind") != "none"}


def build(
    constructor: Callable[..., Any], section: Section, name: str, **given: Any
) -> Any:
    """Calls `constructor(**section, **given)`; errors name the config key.

    Args:
      constructor: Function or module class with named parameters.
      section: Config section; its keys are the constructor's parameters.
      name: Name of the section, for the message.
      **given: Arguments that do not come from the config.

    Returns:
      The result of the constructor.

    Raises:
      ConfigError: On an unknown or missing key, or a value that the constructor rejects
        or that is out of its range, see `ranges.check_fields`.
    """
    section = _with_dtype(to_dict(section))
    parameters = inspect.signature(constructor).parameters
    known = _keys_of(constructor, given)
    check_names(section, known, name)
    for key in known:
        missing = parameters[key].default is inspect.Parameter.empty
        if missing and key not in section:
            raise ConfigError(f"{name}.{key} is missing from the config")
    ranges.check_fields(constructor, section, name)
    try:
        made = constructor(**section, **given)
        # Check now what the module would only reject when it is called.
        getattr(made, "check_fields", lambda: None)()
        return made
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name}: {error}") from error


def build_row(
    row: Callable[..., Any], kind: str, section: Section, name: str, **given: Any
) -> Any:
    """Calls a row of a table of constructors like `build`; errors name the kind.

    Args:
      row: The constructor, see `build`.
      kind: Name of the row, for the message about an unknown key.
      section: See `build`; without "kind".
      name: See `build`.
      **given: See `build`.

    Returns:
      The result of the row.

    Raises:
      ConfigError: See `build`.
    """
    check_names(section, _keys_of(row, given), name, f' of the kind "{kind}"')
    return build(row, section, name, **given)


def _keys_of(constructor, given):
    """Names of the parameters that a config sets."""
    parameters = inspect.signature(constructor).parameters
    return [k for k in parameters if k not in given and k not in ("parent", "name")]


def _with_dtype(section):
    """The section with the canonical name of its compute type."""
    if "dtype" not in section:
        return section
    return section | {"dtype": ranges.dtype_name(section["dtype"])}


# Sections and plain keys of a config by stage.
_KEYS = {
    "autoencoder": "data first_stage discriminator loss train",
    "diffusion": "data first_stage conditions backbone schedule loss train sample",
    "classifier": "data first_stage classifier schedule train",
}
# Sections (of any stage) and keys that a config may omit.
_OPTIONAL_SECTIONS = ("eval",)
_OPTIONAL = ("freeze",)


def check_values(config: ConfigDict) -> ConfigDict:
    """Checks what can be checked of a config without data, weights or modules.

    That is the names of its sections, and the names and values of the settings that
    the training loop reads; modules check their own fields.

    Args:
      config: ConfigDict of any stage.

    Returns:
      The config with the canonical names of compute types.

    Raises:
      ConfigError: If a section or a key is unknown or missing, or a value is out of
        range.
    """
    found = to_dict(config)
    sections = choose(_KEYS, found.get("stage"), "stage").split()
    known = ["stage", "seed", *sections, *_OPTIONAL_SECTIONS]
    of = f' of the stage "{found["stage"]}" (config.stage)'
    check_names(found, known, "config", of)
    sections += [name for name in _OPTIONAL_SECTIONS if name in found]
    for name in ("seed", *sections):
        if name not in found:
            raise ConfigError(f"{name} is missing from the config")
        if name in sections and not isinstance(found[name], Mapping):
            raise ConfigError(
                f"{name}={ranges.shown(found[name])} must be a section, of keys and "
                "their values"
            )
    _check_keys(found["train"], {*ranges.TRAIN, "optimizer", "mesh"}, "train")
    if found["stage"] != "autoencoder":
        _check_keys(found["first_stage"], {*ranges.LATENTS}, "first_stage")
        ranges.check_section(found["first_stage"], "first_stage")
    ranges.check_section(found, "")
    for name in ("data", "train", "sample", "eval"):
        ranges.check_section(found.get(name, {}), name)
    with_types = _usual_types(found)
    return config if with_types == found else ConfigDict(with_types)


def _check_keys(section, known, name):
    check_names(section, known, name)
    for key in sorted(known - section.keys()):
        if key not in _OPTIONAL:
            raise ConfigError(f"{name}.{key} is missing from the config")


def _usual_types(section):
    """Nested dict with the canonical names of compute types."""
    return {
        key: _usual_types(value) if isinstance(value, dict) else value
        for key, value in _with_dtype(section).items()
    }


def check_names(
    section: Mapping[str, Any], known: Iterable[str], name: str, of: str = ""
) -> None:
    """Checks that a section has no unknown keys.

    Args:
      section: Mapping with the section's keys.
      known: Keys that it may have.
      name: Name of the section, for the message.
      of: Qualifier of the section, for the message, if its name alone is ambiguous.

    Raises:
      ConfigError: On an unknown key; the message suggests the closest known key.
    """
    for key in section:
        if key not in known:
            meant = suggest(key, known)
            raise ConfigError(f"{name}.{key} is not an option{of}; {meant}")


def choose(table: Mapping[str, Any], kind: Any, name: str) -> Any:
    """Looks up `kind` in a table of choices.

    Args:
      table: Name -> row.
      kind: Name of a row, from the config.
      name: Its config key, for the message.

    Returns:
      The row.

    Raises:
      ConfigError: If the table has no such row; the message suggests valid names.
    """
    if not isinstance(kind, str) or kind not in table:
        raise ConfigError(f'{name}="{kind}" is unknown; {suggest(kind, table)}')
    return table[kind]


def suggest(key: Any, known: Iterable[Any]) -> str:
    """Returns a hint for an unknown key, for error messages.

    Args:
      key: The key.
      known: Keys that exist.

    Returns:
      `did you mean "x"?`, or the list of the keys that exist.
    """
    known = list(known)
    meant = near_miss(key, known)
    if meant is not None:
        return f'did you mean "{meant}"?'
    return "choose from " + ", ".join(sorted(str(k) for k in known))


def near_miss(key: Any, known: Iterable[Any], likeness: float = 0.6) -> str | None:
    """Finds the existing key that is most similar to an unknown one.

    Args:
      key: The key.
      known: Keys that exist.
      likeness: Minimum similarity, 0 to 1.

    Returns:
      The most similar key; None if none is similar enough.
    """
    known = [str(k) for k in known]
    close = difflib.get_close_matches(str(key), known, n=1, cutoff=likeness)
    return close[0] if close else None


def to_json(config: Section) -> str:
    """Serialises a config; tuples become lists, as JSON has no tuples.

    Args:
      config: Config or section.

    Returns:
      JSON, indented, with sorted keys.
    """
    return json.dumps(to_dict(config), indent=2, sort_keys=True) + "\n"


def from_json(text: str) -> ConfigDict:
    """Inverse of `to_json`; lists become tuples.

    Args:
      text: JSON.

    Returns:
      ConfigDict.
    """
    return ConfigDict(_tuples(json.loads(text)))


def _tuples(value):
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    return value


def upgrade(config: Mapping[str, Any]) -> dict[str, Any]:
    """Upgrades a config of an older version; a current one is unchanged.

    Up to version 0.1 the section `backbone` was called `unet`, and so was the network
    in paths of parameters; latents had one scaling factor for all channels.

    Args:
      config: Nested dict.

    Returns:
      Nested dict.
    """
    config = dict(config)
    if "unet" in config:
        config["backbone"] = config.pop("unet")
        if "train" in config:
            config["train"] = _upgrade_paths(config["train"])
    if "backbone" in config:
        config["backbone"] = {"kind": "unet"} | config["backbone"]
    if "first_stage" in config and config.get("stage") in ("diffusion", "classifier"):
        config["first_stage"] = _SCALAR_STATISTICS | dict(config["first_stage"])
    return config


_SCALAR_STATISTICS = {
    "latents_mean": None,
    "latents_std": None,
    "latent_statistics": "scalar",
}


def upgrade_config(config: ConfigDict) -> tuple[ConfigDict, list[str]]:
    """Upgrades a config of an older version, with notes on renamed sections.

    Args:
      config: ConfigDict.

    Returns:
      (config, notes): ConfigDict with the current names, and sentences on what has been
      renamed.
    """
    found = to_dict(config)
    today = upgrade(found)
    if today == found:
        return config, []
    old = "unet" in found
    notes = ["the config's section `unet` is called `backbone` now: rename it"] * old
    return ConfigDict(today), notes


def _upgrade_paths(train):
    """The section `train` with its parameter paths renamed."""
    renamed = {
        "freeze": tuple(_today(path) for path in train.get("freeze") or ()),
        "sharding_overrides": tuple(
            (_today(path), axis) for path, axis in train.get("sharding_overrides") or ()
        ),
    }
    return train | {key: value for key, value in renamed.items() if key in train}


def _today(path):
    """A parameter path, or a pattern of paths, with the network's current name."""
    return re.sub(r"\bunet(?=$|/)", "backbone", path)


def differences(
    ours: Section, theirs: Section, ignore: Sequence[str] = ()
) -> list[tuple[str, Any, Any]]:
    """Lists the keys in which two configs differ.

    Args:
      ours: Config or section.
      theirs: Another.
      ignore: Dotted keys or sections to ignore.

    Returns:
      List of (dotted key, our value, their value), sorted; a value is None if the key
      is absent, which counts as equal to an empty list and to False.
    """
    ours, theirs = (
        _flatten(_tuples(json.loads(to_json(config)))) for config in (ours, theirs)
    )
    rows = []
    for key in sorted(ours.keys() | theirs.keys()):
        if any(key == i or key.startswith(f"{i}.") for i in ignore):
            continue
        # Older configs lack keys that were added later.
        here, there = (config.get(key, ()) for config in (ours, theirs))
        if here is False and there == () or there is False and here == ():
            continue
        here, there = (None if value == () else value for value in (here, there))
        if here != there:
            rows.append((key, here, there))
    return rows


def _flatten(tree, prefix=""):
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
