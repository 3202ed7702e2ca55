"""The config section `conditions`: what it leaves open, and weights from elsewhere."""

import dataclasses

from flax.traverse_util import unflatten_dict

from ldm_jax.conditioners import CONDITIONERS
from ldm_jax.config import ConfigError, to_dict
from ldm_jax.convert.files import ConversionError
from ldm_jax.convert.towers import load_tower
from ldm_jax.data.inputs import make_inputs

# Options of entries that follow from the tokenizer, or from the layout's encoding.
_OF_TOKENS = ("vocab_size", "max_length", "null_ids")


def fill_conditions(config, unet, num_classes):
    """Completes what entries leave open.

    The classes of a label follow from the data set, the ids of `text`, `clip_text` and
    `layout` from the entry of `data.inputs` under the same key, and the width of a
    vector from the U-Net.

    Args:
      config: ConfigDict with `conditions` and `data`.
      unet: UNet module.
      num_classes: Number of classes of the data set; None where there are none.

    Returns:
      Batch key -> entry, plain dicts; entries of the kind "none" are left out.

    Raises:
      ConfigError: If something is open that nothing says.
    """
    entries = {key: to_dict(entry) for key, entry in config.conditions.items()}
    entries = {k: entry for k, entry in entries.items() if entry.get("kind") != "none"}
    inputs = config.data.get("inputs") or {}
    for key, entry in entries.items():
        kind = entry.get("kind")
        if kind == "class_label":
            _fill_label(key, entry, num_classes)
        if kind in ("text", "clip_text", "layout"):
            _fill_tokens(key, entry, inputs.get(key) or {})
        if kind in ("class_label", "clip_image") and entry.get("slot") == "vector":
            entry["features"] = entry.get("features") or 4 * unet.channels
    return entries


def _fill_label(key, entry, num_classes):
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


def _fill_tokens(key, entry, given):
    """Completes the options of ids from the input that delivers them."""
    fields = dataclasses.fields(CONDITIONERS[entry["kind"]])
    options = {f.name: f.default for f in fields if f.name in _OF_TOKENS}
    open_ = [
        name
        for name, default in options.items()
        if entry.get(name, default) in (None, dataclasses.MISSING)
    ]
    if not open_:
        return
    for name, value in _token_options(key, entry, open_[0], given).items():
        if name in options and entry.get(name) is None:
            entry[name] = value


def _token_options(key, entry, option, given):
    """What an input says of its ids."""
    kind = "layout" if entry["kind"] == "layout" else "caption"
    if given.get("kind") != kind:
        raise ConfigError(
            f"conditions.{key}.{option} is unset: give it, or the input that it "
            f"follows from, data.inputs.{key} of kind {kind!r}"
        )
    made = make_inputs({key: given})[key]
    ids = made if kind == "layout" else made.tokenizer
    return {name: getattr(ids, name) for name in _OF_TOKENS if hasattr(ids, name)}


def initial_weights(conditioner):
    """Reads the towers that a new run takes over from elsewhere.

    Args:
      conditioner: Conditioner.

    Returns:
      Nested dict of NumPy arrays, a part of the parameters {"conditioner": ...}.

    Raises:
      ConfigError: If a file cannot be used, or a tower would keep random weights for
        good.
    """
    found = {}
    for key, tower in conditioner.towers().items():
        if tower.weights:
            try:
                params = load_tower(tower.weights, tower.module)
            except ConversionError as error:
                raise ConfigError(f"conditions.{key}.weights: {error}") from error
            found["conditioner", *tower.path.split("/")] = params
        elif tower.frozen:
            raise ConfigError(
                f"conditions.{key} is frozen and would keep random weights: set "
                f"conditions.{key}.weights to a file that has them, train.init_from to "
                f"a run that has, or conditions.{key}.frozen=False to train it"
            )
    return unflatten_dict(found)


def frozen_paths(conditioner):
    """The towers that training leaves alone, as in `train.freeze`."""
    towers = conditioner.towers().values()
    return tuple(f"conditioner/{tower.path}" for tower in towers if tower.frozen)
