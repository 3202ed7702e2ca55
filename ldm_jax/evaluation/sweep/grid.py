"""The settings that a sweep tries: all combinations of the values of its flags."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from ldm_jax import ranges
from ldm_jax.diffusion.sample_options import SampleOptions
from ldm_jax.errors import ConfigError
from ldm_jax.sampling.options import check_given

# Options of the sampler that a sweep varies.
AXES = ("sampler", "num_steps", "guidance_scale")


def combinations(
    samplers: Sequence[str],
    num_steps: Sequence[str],
    scales: Sequence[str],
    eta: float | None = None,
) -> list[dict[str, Any]]:
    """Lists the settings, guidance scales innermost, and checks them without a model.

    Args:
      samplers: Rows of SAMPLERS; empty for the config's.
      num_steps: Numbers of steps, strings of the command line; empty likewise.
      scales: Guidance scales, likewise.
      eta: DDIM's eta for all of them; None for the config's.

    Returns:
      Dicts for `sampling.options.complete`; the value None is the config's.

    Raises:
      ConfigError: If a value is not a number, out of its range or given twice.
    """
    lists = {
        "sampler": list(samplers),
        "num_steps": [_number("num_steps", text, int) for text in num_steps],
        "guidance_scale": [_number("guidance_scale", text, float) for text in scales],
    }
    for name, values in lists.items():
        twice = [value for value in values if values.count(value) > 1]
        if twice:
            raise ConfigError(f"--{name}: {twice[0]} is given twice; give it once")
    rows = itertools.product(*(values or [None] for values in lists.values()))
    rows = [dict(zip(AXES, row, strict=True)) | {"eta": eta} for row in rows]
    for row in rows:
        check_given(row)
    return rows


def _number(name: str, text: str, kind: Callable[[str], Any]) -> Any:
    try:
        value = kind(text)
    except ValueError as error:
        numbers = "whole numbers" if kind is int else "numbers"
        raise ConfigError(
            f"--{name}={text}: give {numbers}, with commas between, as "
            f"{'25,50' if kind is int else '1,1.5,3'}"
        ) from error
    ranges.check_value(ranges.SAMPLE[name], value, f"--{name}")
    return value


def values_of(options: SampleOptions) -> dict[str, Any]:
    """Returns the values of the options that a sweep varies.

    Args:
      options: Options of a row.

    Returns:
      Row of AXES -> value; the guidance scale is a number, or a string if each
      condition has its own.
    """
    scale = options.guidance.scale
    if isinstance(scale, tuple):
        scale = ",".join(f"{key}={value:g}" for key, value in scale)
    return dict(zip(AXES, (options.sampler, options.num_steps, scale), strict=True))


def name_of(values: dict[str, Any]) -> str:
    """Names the file of a row.

    Args:
      values: Result of `values_of`.

    Returns:
      A name without path separators.
    """
    return "_".join(map(_text, values.values()))


def title_of(values: dict[str, Any]) -> str:
    """Describes a row, for output.

    Args:
      values: Result of `values_of`.

    Returns:
      Text like "ddim, 50 steps, guidance 1.5".
    """
    sampler, steps, scale = map(_text, values.values())
    return f"{sampler}, {steps} step{'s' * (steps != '1')}, guidance {scale}"


def _text(value):
    # `repr`, so that two scales get different names, however close they are.
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value)
    return str(value)
