"""The format of a run's images: channels, type, range, and how they are displayed.

Batches hold uint8, uint16 or float32; `to_float` maps each to [-1, 1] by its type
alone. Images that are not 8-bit RGB are mapped to RGB by `Pixels.to_rgb` for display,
LPIPS and feature networks.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ldm_jax.annotations import Float, Num, Shaped, UInt8
from ldm_jax.errors import ConfigError
from ldm_jax.images.value_ranges import whole_range_of, words_of

# Kinds that can be converted into one another -> number of channels. A number instead
# of a kind is for channels of any meaning, which are not converted.
KINDS = {"grey": 1, "rgb": 3, "rgba": 4}

# Types of a batch.
TYPES = ("uint8", "uint16", "float32")

# Keys of the config section `data` for the format of images, and for displaying them.
KEYS = ("channels", "pixel_type", "value_range")
SHOWN = "rgb_channels"

MOST_CHANNELS = 1024

# Largest value of the integers of a batch.
_TOPS = {"uint8": 255, "uint16": 65535}


def to_float(images: Shaped[Any, "*shape"]) -> Float[Any, "*shape"]:
    """Maps the images of a batch to float32 in [-1, 1], by their type.

    Args:
      images: NumPy or JAX array of any shape: uint8, uint16, or floats, which are
        already in [-1, 1].

    Returns:
      float32 array of the same kind and shape: x / 127.5 - 1, x / 32767.5 - 1, or x.
    """
    top = _TOPS.get(str(images.dtype))
    images = images.astype("float32")
    return images if top is None else images / (top / 2) - 1


def to_uint8(images: Float[Any, "*shape"]) -> UInt8[Any, "*shape"]:
    """Maps images in [-1, 1] to uint8, the inverse of `to_float`.

    Args:
      images: NumPy or JAX array of floats, of any shape; values outside are clipped.

    Returns:
      uint8 array of the same kind and shape: floor(127.5 x + 128) in [0, 255].
    """
    return _quantise(images, "uint8")


def _quantise(images, name):
    """Maps [-1, 1] to integers, clipped; the middle of the range is rounded up."""
    top = _TOPS[name]
    values = images.astype("float32") * (top / 2) + (top + 1) / 2
    return values.clip(0, top).astype(name)


@dataclasses.dataclass(frozen=True)
class Pixels:
    """The image format in the config section `data`.

    Attributes:
      channels: "grey", "rgb" or "rgba", to which images are converted; or a number of
        channels of any meaning, as an integer or its digits. None for "rgb".
      pixel_type: Type of a batch, one of TYPES. None for "uint8", or "float32" if
        `channels` is a number.
      value_range: (lowest, highest): the values of files that are mapped to -1 and 1;
        values outside are clipped. None for the range of a file's integers.
      rgb_channels: Numbers of the channels that are shown as red, green and blue, or of
        the one that is shown as grey; ("mean",) shows the mean of all. Empty for the
        first three, or for the mean of one or two. Must be empty if `channels` is a
        kind.

    Raises:
      ConfigError: If a field is invalid.
    """

    channels: str | int | None = None
    pixel_type: str | None = None
    value_range: tuple[float, float] | None = None
    rgb_channels: Sequence[int | str] = ()

    def __post_init__(self):
        if self.kind is None and not _is_count(self.channels):
            raise ConfigError(
                f"data.channels={self.channels} must be {', '.join(KINDS)}, or a "
                f"number of channels from 1 to {MOST_CHANNELS}"
            )
        if self.pixel_type not in (None, *TYPES):
            raise ConfigError(
                f'data.pixel_type="{self.pixel_type}" is unknown; choose from '
                f"{', '.join(TYPES)}"
            )
        if self.value_range is not None and not _is_range(self.value_range):
            raise ConfigError(
                f"data.value_range={self.value_range} must be two numbers, the lowest "
                "and the highest, as (0, 4095)"
            )
        _check_shown(self)

    @property
    def kind(self) -> str | None:
        """Row of KINDS; None if channels may have any meaning."""
        name = "rgb" if self.channels is None else self.channels
        return name if isinstance(name, str) and name in KINDS else None

    @property
    def count(self) -> int:
        """Number of channels."""
        return KINDS[self.kind] if self.kind else int(self.channels)

    @property
    def dtype(self) -> np.dtype:
        """Type of a batch."""
        name = self.pixel_type or ("uint8" if self.kind else "float32")
        return np.dtype(name)

    @property
    def plain(self) -> bool:
        """Whether they are 8-bit grey, RGB or RGBA in the full range, as in photos."""
        whole = self.value_range is None and self.dtype == np.uint8
        return self.kind is not None and whole

    @property
    def is_rgb(self) -> bool:
        """Whether they are 8-bit RGB."""
        return self.plain and self.kind == "rgb"

    def quantise(self, images: Float[Any, "*shape"]) -> Num[Any, "*shape"]:
        """Maps images in [-1, 1] to the type of a batch, the inverse of `to_float`.

        Args:
          images: NumPy or JAX array of floats; values outside are clipped.

        Returns:
          Array of the same kind and shape.
        """
        if str(self.dtype) in _TOPS:
            return _quantise(images, str(self.dtype))
        return images.astype("float32").clip(-1, 1)

    def to_rgb(
        self, images: Float[Any, "*shape channels"]
    ) -> Float[Any, "*shape three"]:
        """Maps images to RGB for display, LPIPS and feature networks; differentiable.

        Grey is repeated, RGBA is composited on white, and of many channels
        `rgb_channels` are taken.

        Args:
          images: NumPy or JAX array [..., C] in [-1, 1].

        Returns:
          Array [..., 3] in [-1, 1].
        """
        if self.kind == "rgb":
            return images
        if self.kind == "rgba":
            opacity = (images[..., 3:] + 1) / 2
            return (images[..., :3] - 1) * opacity + 1
        chosen = tuple(self.rgb_channels)
        if not chosen and self.count >= 3:
            chosen = (0, 1, 2)
        if chosen in ((), ("mean",)):
            plane = images.mean(axis=-1, keepdims=True)
        elif len(chosen) == 1:
            plane = images[..., chosen[0] : chosen[0] + 1]
        else:
            return images[..., np.array(chosen)]
        return plane.repeat(3, axis=-1)

    def shown(self, images: Num[Any, "*shape channels"]) -> UInt8[Any, "*shape three"]:
        """Maps the images of a batch to 8-bit RGB for display.

        Args:
          images: NumPy or JAX array [..., C] in the type of a batch.

        Returns:
          uint8 array [..., 3].
        """
        if self.is_rgb:
            return images
        return to_uint8(self.to_rgb(to_float(images)))

    def record(self) -> dict[str, Any]:
        """Makes the record of the format for files beside images, for `pixels_of`.

        Returns:
          JSON-like dict; empty for 8-bit RGB.
        """
        if self.is_rgb:
            return {}
        found = dataclasses.asdict(self)
        return {key: list(v) if isinstance(v, tuple) else v for key, v in found.items()}

    def describe_range(self) -> str | None:
        """Describes which values of files are black and white.

        Returns:
          Text; None for 8-bit RGB.
        """
        if self.is_rgb:
            return None
        if self.value_range is None:
            top = _TOPS.get(str(self.dtype))
            # Floats in files of samples have the range of a batch.
            return whole_range_of(-1, 1) if top is None else whole_range_of(0, top)
        return words_of(*self.value_range)

    def describe(self) -> str:
        """Describes how they are displayed, for reports.

        Returns:
          Text; "" for 8-bit RGB.
        """
        if self.is_rgb:
            return ""
        if self.kind is not None:
            ways = {"grey": "repeated", "rgb": "in 8 bits", "rgba": "on white"}
            return f"{self.kind} as RGB: {ways[self.kind]}"
        chosen = tuple(self.rgb_channels) or (
            (0, 1, 2) if self.count > 2 else ("mean",)
        )
        if chosen == ("mean",):
            return f"{self.count} channels as RGB: their mean"
        return f"{self.count} channels as RGB: {', '.join(map(str, chosen))}"


def _is_count(value):
    if isinstance(value, str):
        value = int(value) if value.isdecimal() and len(value) < 6 else 0
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return whole and 1 <= value <= MOST_CHANNELS


def _is_range(value):
    if not isinstance(value, Sequence) or len(value) != 2:
        return False
    if not all(isinstance(v, int | float) and np.isfinite(v) for v in value):
        return False
    return value[0] < value[1]


def _check_shown(pixels):
    chosen = tuple(pixels.rgb_channels)
    if not chosen or (chosen == ("mean",) and pixels.kind is None):
        return
    places = all(isinstance(c, int) and 0 <= c < pixels.count for c in chosen)
    if pixels.kind is not None:
        raise ConfigError(
            f"data.rgb_channels={chosen} is for many channels, and data.channels="
            f"{pixels.kind} says already how it is shown: leave it out"
        )
    if len(chosen) not in (1, 3) or not places:
        raise ConfigError(
            f"data.rgb_channels={chosen} must be one or three numbers from 0 to "
            f"{pixels.count - 1}, or mean"
        )


# The default format of images.
RGB = Pixels()


def pixels_of(
    section: Mapping[str, Any] | Any, image_channels: int | None = None
) -> Pixels:
    """Makes the image format of a config section.

    Args:
      section: Config section `data`; keys that it lacks are unset.
      image_channels: Number of a model's channels, used if the section has no channels,
        as for converted models.

    Returns:
      Pixels.

    Raises:
      ConfigError: If a value is invalid.
    """
    found = {key: section.get(key) for key in KEYS}
    if found["channels"] is None and image_channels is not None:
        kinds = {count: kind for kind, count in KINDS.items()}
        found["channels"] = kinds.get(image_channels, image_channels)
    if found["value_range"] is not None:
        found["value_range"] = tuple(found["value_range"])
    return Pixels(**found, rgb_channels=tuple(section.get(SHOWN) or ()))
