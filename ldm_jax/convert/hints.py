"""What other formats have no place for, written beside what they read.

They say which networks take a condition, not which class means none, how a map is
resized or which tokenizer was used; and how many channels images have, not what these
are and which values are black and white. An export has a section of its own for that,
which other programs pass over and which reading takes where it fits.
"""

from collections.abc import Mapping
from typing import Any

from ldm_jax.config import from_json, to_dict, to_json
from ldm_jax.convert.model import Model
from ldm_jax.errors import ConfigError
from ldm_jax.images import pixels_of

# The name of the section, and what it says of images.
SECTION, _PIXELS = "ldm_jax", "pixels"
# What a format says of its text encoders and shapes do not show: hints are not asked,
# so that an export which says it wrongly does not read as the same model.
_TEXT_ENCODERS = ("text", "clip_text", "layout")
_SAID = ("num_heads", "head_channels", "causal", "activation")


def hints_of(model: Model) -> dict[str, Any]:
    """Makes the section of an export.

    Args:
      model: Model of either stage.

    Returns:
      JSON-like dict; {} where nothing is conditional and images are RGB of 8 bits.
    """
    found = pixels_of(model.config["data"]).record()
    said = {_PIXELS: found} if found else {}
    entries = model.config.get("conditions")
    if not entries:
        return said
    inputs = model.config["data"].get("inputs") or {}
    kept = {
        key: {name: value for name, value in entry.items() if name != "weights"}
        for key, entry in entries.items()
    }
    return _plain(said | {"conditions": kept, "inputs": inputs})


def _plain(value):
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def take_hints(model: Model, hints: Any) -> None:
    """Fills in what an export says beside the format.

    Args:
      model: Model of either stage that was read; of its config, and of that of its
        first stage, what fits is replaced.
      hints: The section, from a file that may have any.
    """
    if not isinstance(hints, Mapping):
        return
    _take_pixels(model, hints.get(_PIXELS))
    config = model.config
    if "conditions" not in config:
        return
    entries, inputs = (hints.get(name) for name in ("conditions", "inputs"))
    for key, entry in config["conditions"].items():
        hint = entries.get(key) if isinstance(entries, Mapping) else None
        same = isinstance(hint, Mapping) and hint.get("kind") == entry["kind"]
        if same and hint.get("slot", entry.get("slot")) == entry.get("slot"):
            config["conditions"][key] = _merged(entry, _tuples(hint))
    if isinstance(inputs, Mapping):
        known = config["conditions"].keys() & inputs.keys()
        config["data"]["inputs"] |= {key: _tuples(inputs[key]) for key in known}


def _take_pixels(model, hint):
    """What images are, where the first stage has as many channels."""
    if not isinstance(hint, Mapping):
        return
    try:
        pixels = pixels_of(_tuples(hint))
    # A file may have anything there.
    except (ConfigError, TypeError, ValueError):
        return
    first = model.first_stage or model
    count = pixels.count
    if first.config["stage"] == "autoencoder":
        count = first.config["first_stage"].get("image_channels", 3)
    if count == pixels.count:
        for each in (model, first):
            each.config["data"] |= _tuples(pixels.record())


def _merged(entry, hint):
    if entry["kind"] not in _TEXT_ENCODERS:
        return hint
    said = {name: entry[name] for name in _SAID if name in entry}
    return {name: hint[name] for name in hint if name not in _SAID} | said


def _tuples(section):
    """The section as a config has it, whose sequences are tuples."""
    return to_dict(from_json(to_json(dict(section))))
