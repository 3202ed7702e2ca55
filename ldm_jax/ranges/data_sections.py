"""Checks of the section `data` and its subsections."""

from collections.abc import Mapping

from ldm_jax.ranges.checks import (
    Check,
    is_whole,
    local_place,
    per_level,
    real,
    several,
    text,
    whole,
)
from ldm_jax.ranges.shared import DECAY, FLAG, FRACTION, GIGABYTES, SIDE, WORDS


def _is_channels(value):
    if isinstance(value, str) and value.isdecimal() and len(value) < 6:
        value = int(value)
    if value in (None, "grey", "rgb", "rgba"):
        return True
    return is_whole(value) and 0 < value <= 1024


def _is_value_range(value):
    if value is None:
        return True
    return several(real(), 2, 2).accepts(value) and value[0] < value[1]


def _is_rgb_channels(value):
    if not isinstance(value, tuple | list):
        return False
    return all((is_whole(v) and v >= 0) or v == "mean" for v in value)


_PARTS = Check(
    "a section, of keys and their values", lambda value: isinstance(value, Mapping)
)
_NAMES = Check(
    "a string, or a tuple of such",
    lambda value: isinstance(value, str) or several(text(), 1).accepts(value),
)
_EVAL_NAMES = Check(
    _NAMES.what,
    lambda value: value is None or _NAMES.accepts(value),
    "none holds out a part of data.name",
)

DATA = {
    "source": text(),
    "name": _NAMES,
    "data_dir": text(empty=True, none="the usual place"),
    "split": text(),
    "eval_split": text(empty=True, none="none"),
    "eval_name": _EVAL_NAMES,
    "image_size": whole(1, SIDE),
    "crop": text(),
    "min_crop": real(0, 1, "("),
    "flip": FLAG,
    "workers": whole(0, 1024),
    "restart_workers": whole(0, 10**6),
    "on_error": text(),
    "max_image_gb": GIGABYTES,
    "channels": Check(
        "grey, rgb, rgba, or a number of channels from 1 to 1,024", _is_channels
    ),
    "pixel_type": Check(
        "uint8, uint16, float32, or None (uint8; float32 of many channels)",
        lambda value: value in (None, "uint8", "uint16", "float32"),
    ),
    "value_range": Check(
        "(lowest, highest), two numbers, or None (that of the files' integers)",
        _is_value_range,
    ),
    "rgb_channels": Check("numbers of channels, or mean", _is_rgb_channels),
    "text_states": FLAG,
    "image_key": text(none="the usual one"),
    "label_key": text(empty=True, none="the usual one"),
    "validation_fraction": real(0, 1, "()"),
    "keys": WORDS,
    "optional": WORDS,
    "box_names": WORDS,
    "parts": _PARTS,
    "buckets": _PARTS,
    "filter": text(empty=True, none="all examples"),
    "caption_field": text(none="the usual one"),
    "index_dir": local_place(none="beside the data"),
    "cache_gb": GIGABYTES,
    "subset": text(none="the set's own"),
    "revision": text(none="the newest"),
}

BUCKETS = {
    "sizes": per_level(whole(1, SIDE)),
    "step": whole(1, SIDE),
    "max_ratio": real(1, 64),
}

INPUTS = {
    "tokenizer": text(),
    "max_length": whole(1, 2**16),
    "keys": several(text(), 1),
    "weights": several(real(0, 1e9, "(")),
    "dropout": DECAY,
    "fallback": text(empty=True, none="an error"),
    "pad_id": whole(0, 2**31, none="the tokenizer's own"),
    "vocab_size": whole(1, 2**24),
    "max_objects": whole(1, 2**16),
    "num_classes": whole(1, 2**24, none="any"),
    "factor": whole(1, 1024),
    "min_fraction": FRACTION,
    "max_fraction": FRACTION,
    "fill": real(-1, 1),
    "size": whole(1, SIDE, none="that of the image"),
    "stretch": FLAG,
}
