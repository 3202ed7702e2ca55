"""Checks of the section `sample`: how samples are drawn."""

from collections.abc import Mapping

from ldm_jax.ranges.checks import Check, real, several, text, whole
from ldm_jax.ranges.shared import FRACTION, SIDE

_SCALE = real(-1000, 1000)


def _is_scale(value):
    """Whether a value is a guidance scale: a number, or one for each condition."""
    if isinstance(value, Mapping):
        value = tuple(value.items())
    if isinstance(value, tuple | list):
        return all(
            isinstance(pair, tuple | list) and len(pair) == 2 and _is_scale(pair[1])
            for pair in value
        )
    return _SCALE.accepts(value)


def _is_interval(value):
    return several(FRACTION, 2, 2).accepts(value) and value[0] <= value[1]


SAMPLE = {
    "sampler": text(),
    "num_steps": whole(1, 100_000),
    "guidance_scale": Check(
        f"{_SCALE.what}, one number or one for each condition", _is_scale
    ),
    "guidance_interval": Check("(low, high), 0 <= low <= high <= 1", _is_interval),
    "guidance_rescale": FRACTION,
    "eta": real(0, 1, none="the sampler's own"),
    "spacing": text(),
    "final_level": text(none="the spacing's own"),
    "shift": real(0, 1000, "("),
    "temperature": real(0, 100),
    "strength": real(0, 1, none="noise alone"),
    "tile": whole(1, SIDE, none="the whole at once"),
    "decode_tile": whole(1, SIDE, none="the whole at once"),
}
