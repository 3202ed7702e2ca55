"""Checks of fields that several networks have, before anything is computed."""

from collections.abc import Sequence
from typing import Any


def check_groups(channels: int, channel_mult: Sequence[int], norm_groups: int) -> None:
    """Checks that every level's channels divide into the groups of the norms.

    Args:
      channels: Width of the first convolution.
      channel_mult: Width of every level over `channels`.
      norm_groups: Groups of the norms.

    Raises:
      ValueError: If they do not.
    """
    for width in (channels, *(channels * multiple for multiple in channel_mult)):
        if width % norm_groups:
            nearest = max(1, round(channels / norm_groups)) * norm_groups
            raise ValueError(
                f"{width} channels do not divide into norm_groups={norm_groups}: "
                f"choose channels={nearest}, or other norm_groups"
            )


def check_per_level(levels: int, **fields: Any) -> None:
    """Checks that fields with one value per level have as many values as levels.

    Args:
      levels: Number of levels.
      **fields: Field -> value, or tuple of values.

    Raises:
      ValueError: If a field has more or fewer.
    """
    for name, value in fields.items():
        if isinstance(value, list | tuple) and len(value) != levels:
            raise ValueError(
                f"{name} has {len(value)} values, channel_mult {levels}: give one, or "
                "one for each level"
            )
