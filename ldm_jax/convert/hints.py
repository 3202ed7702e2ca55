"""An extra section of exports, for settings that other formats cannot express.

Other formats record which networks a condition has, but not the null class, how a map
is resized or which tokenizer was used; and the number of image channels, but not their
meaning or which values are black and white. An export has a section of its own for
these, which other programs ignore and which is used on reading as far as it fits.
"""

from collections.abc import Mapping
from typing import Any

from ldm_jax.config import from_json, to_dict, to_json
from ldm_jax.convert.model import Model
from ldm_jax.errors import ConfigError
from ldm_jax.images import pixels_of

# The name of the section, and its key for the pixel format of images.
SECTION, _PIXELS = "ldm_jax", "pixels"
# Options of text encoders that a format records and that shapes do not show. They are
# not taken from hints, so that verification notices if an export has them wrong.
_TEXT_ENCODERS = ("text", "clip_text", "layout")
_SAID = ("num_heads", "head_channels", "causal", "activation")


def hints_of(model: Model) -> dict[str, Any]:
    """Makes the section of an export.

    Args:
      model: Model of either stage.

    Returns:
      JSON-like dict; {} if there are no conditions and images are RGB of 8 bits.
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
    """Applies the extra section of an export to the model that was read.

    Args:
      model: Model of either stage; its config, and that of its first stage, are updated
        where the hints fit.
      hints: The section, from a file that may contain anything.
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
    """Applies the pixel format, if the first stage has as many channels."""
    if not isinstance(hint, Mapping):
        return
    try:
        pixels = pixels_of(_tuples(hint))
    # A file may contain anything there.
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
    """The section with tuples as sequences, as in a config."""
    return to_dict(from_json(to_json(dict(section))))
