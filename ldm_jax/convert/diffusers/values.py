"""Checks values of config.json: whole numbers, values per level, widths and blocks."""

from collections.abc import Mapping, Sequence
from typing import Any

from ldm_jax.errors import ConversionError


def whole(class_name: str, field: str, value: Any) -> int:
    """Checks a whole number.

    Args:
      class_name: The class of the field.
      field: Its name.
      value: Its value.

    Returns:
      The number.

    Raises:
      ConversionError: If it is not a whole number, or less than 1.
    """
    if type(value) is not int or value < 1:
        raise ConversionError(
            f"{field}={value!r} of {class_name} is not supported: it must be a whole "
            "number of at least 1"
        )
    return value


def per_level(config: Mapping[str, Any], field: str, levels: int) -> int | tuple:
    """Reads a field with one value, or one for each level.

    Args:
      config: config.json, complete.
      field: The field.
      levels: Number of levels.

    Returns:
      A whole number, or a tuple of one per level.

    Raises:
      ConversionError: If it is neither.
    """
    name, value = config["_class_name"], config[field]
    if not isinstance(value, list | tuple):
        return whole(name, field, value)
    if len(value) != levels:
        raise ConversionError(
            f"{field}={list(value)} of {name} has {len(value)} values for {levels} "
            "levels: it must have one for each"
        )
    return tuple(whole(name, field, number) for number in value)


def whole_widths(config: Mapping[str, Any]) -> Sequence[int]:
    """Reads the widths of the levels.

    Args:
      config: config.json, complete.

    Returns:
      Whole numbers, multiples of the first.

    Raises:
      ConversionError: If they are not.
    """
    name, widths = config["_class_name"], config["block_out_channels"]
    if not isinstance(widths, list | tuple) or not widths:
        raise ConversionError(
            f"block_out_channels={widths!r} of {name} must be a list of whole numbers"
        )
    for width in widths:
        whole(name, "block_out_channels", width)
    if any(width % widths[0] for width in widths):
        raise ConversionError(
            f"block_out_channels={list(widths)} of {name} is not supported: every "
            f"width must be a multiple of the first, {widths[0]}"
        )
    return widths


def ratios(widths: Sequence[int]) -> tuple[int, ...]:
    """Divides the widths of the levels by that of the first.

    Args:
      widths: See `whole_widths`.

    Returns:
      Tuple of whole numbers.
    """
    return tuple(width // widths[0] for width in widths)


def require_equal(config: Mapping[str, Any], field: str, allowed: Sequence) -> None:
    """Checks that a field has a value that our networks support.

    Args:
      config: config.json, complete.
      field: The field.
      allowed: The supported values.

    Raises:
      ConversionError: If it has another value.
    """
    if config[field] not in allowed:
        names = " or ".join(repr(value) for value in allowed)
        raise ConversionError(
            f"{field}={config[field]!r} of {config['_class_name']} is not supported: "
            f"only {names} is"
        )


def attends_at(config: Mapping[str, Any], attends: str, others: str) -> tuple[int, ...]:
    """Reads which levels have attention, and checks the kinds of blocks.

    Args:
      config: config.json, complete.
      attends: Name of a down block with attention.
      others: Name of a down block without attention.

    Returns:
      Downsampling factors of the levels with attention.

    Raises:
      ConversionError: If a block is of another kind, or the up blocks differ.
    """
    name, down = config["_class_name"], config["down_block_types"]
    for kind in down:
        if kind not in (attends, others):
            raise ConversionError(
                f"the block {kind} of {name} is not supported: {others}, {attends}"
            )
    up = [
        kind.replace("Up", "Down").replace("Decoder", "Encoder")
        for kind in config["up_block_types"]
    ]
    if up[::-1] != list(down):
        raise ConversionError(
            f"up_block_types of {name} do not mirror down_block_types"
        )
    if len(down) != len(config["block_out_channels"]):
        raise ConversionError(
            f"down_block_types of {name} has {len(down)} blocks for "
            f"{len(config['block_out_channels'])} widths in block_out_channels"
        )
    return tuple(2**level for level, kind in enumerate(down) if kind == attends)
