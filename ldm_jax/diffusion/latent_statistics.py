"""Mean and standard deviation of latents: what a denoiser's latents are measured in."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ldm_jax.annotations import Array, Float


class LatentStatistics(NamedTuple):
    """What brings latents to zero mean and unit variance: (z - shift) * scale.

    The paper scales by one factor for all channels, 1 / standard deviation, and leaves
    the mean as it is (Rombach et al. 2022, Sec. G); that is a scalar `scale` and a
    `shift` of 0. They are kept as they are applied and not as mean and standard
    deviation, so that such a factor multiplies the latents to the bit.

    Attributes:
      shift: Mean. On the host a float, or a tuple of one per channel; in a tree of
        arrays float32, [] or [c], and None for a scalar of 0, as even a subtraction of
        0 changes how compilers round what comes after it.
      scale: 1 / standard deviation, likewise but never None.
    """

    shift: Any = 0.0
    scale: Any = 1.0

    @classmethod
    def of(cls, mean: Sequence[Any], std: Sequence[Any]) -> "LatentStatistics":
        """Makes them of the means and the standard deviations of channels.

        Args:
          mean: Mean per channel.
          std: Standard deviation per channel.

        Returns:
          LatentStatistics on the host.

        Raises:
          ValueError: If there is not one of each per channel, or one is out of range.
        """
        if not mean or len(mean) != len(std):
            raise ValueError(
                f"latents need a mean and a standard deviation per channel, got "
                f"{len(mean)} means and {len(std)} standard deviations"
            )
        for channel, (average, deviation) in enumerate(zip(mean, std, strict=True)):
            if not (math.isfinite(average) and 0 < deviation < math.inf):
                raise ValueError(
                    f"channel {channel} of the latents has a mean of {average:g} and a "
                    f"standard deviation of {deviation:g}: give a number and a "
                    "positive one"
                )
        return cls(tuple(map(float, mean)), tuple(1.0 / float(s) for s in std))

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "LatentStatistics":
        """Reads what `record` writes.

        Args:
          record: What a checkpoint records; before there were shifts, "scaling_factor"
            alone.

        Returns:
          LatentStatistics on the host.
        """
        shift, scale = record.get("shift_factor", 0.0), record["scaling_factor"]
        return cls(*(tuple(v) if isinstance(v, list) else v for v in (shift, scale)))

    def record(self) -> dict[str, Any]:
        """What a checkpoint records, in JSON's types.

        Returns:
          {"scaling_factor": `scale`, "shift_factor": `shift`}, floats or lists of one
          per channel.
        """
        shift, scale = (np.asarray(v, np.float64).tolist() for v in self)
        return {"scaling_factor": scale, "shift_factor": shift}

    @property
    def per_channel(self) -> bool:
        """Whether channels have statistics of their own, on the host."""
        return isinstance(self.scale, tuple) or isinstance(self.shift, tuple)

    def arrays(self) -> "LatentStatistics":
        """The same on the way to the devices, as float32 of NumPy.

        Returns:
          LatentStatistics.
        """
        shift, scale = self
        if not self.per_channel and not shift:
            return LatentStatistics(None, np.float32(scale))
        return LatentStatistics(np.float32(shift), np.float32(scale))

    def check_channels(self, channels: int) -> None:
        """Checks that they are those of latents of so many channels.

        Args:
          channels: Channels of the latents.

        Raises:
          ValueError: If they are of another number of channels.
        """
        for value in self:
            if isinstance(value, tuple) and len(value) != channels:
                raise ValueError(
                    f"the statistics are of {len(value)} channels, but the first "
                    f"stage's latents have {channels}"
                )

    def normalise(
        self, latents: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height width channels"]:
        """Brings latents to zero mean and unit variance.

        Args:
          latents: As the first stage makes them, [B, h, w, c].

        Returns:
          Same shape.
        """
        if self.shift is not None:
            latents = latents - _along_channels(self.shift)
        return latents * _along_channels(self.scale)

    def restore(
        self, latents: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height width channels"]:
        """The inverse of `normalise`.

        Args:
          latents: Of unit variance, [B, h, w, c].

        Returns:
          As the first stage makes them, same shape.
        """
        latents = latents / _along_channels(self.scale)
        if self.shift is None:
            return latents
        return latents + _along_channels(self.shift)

    def difference(
        self, other: "LatentStatistics", tolerance: float = 0.05
    ) -> str | None:
        """Says how two differ, in words.

        Args:
          other: LatentStatistics on the host.
          tolerance: Fraction of a standard deviation that does not count, as two runs
            may have measured them on batches of their own.

        Returns:
          A clause, or None.
        """
        shapes = [np.shape(value) for value in (*self, *other) if np.ndim(value)]
        if len(set(shapes)) > 1:
            return "their latents have different numbers of channels"
        if not np.allclose(self.scale, other.scale, rtol=tolerance, atol=0):
            shown = _in_words(self.scale), _in_words(other.scale)
            return f"their scaling factors are {shown[0]} and {shown[1]}"
        distance = np.subtract(self.shift, other.shift) * np.asarray(other.scale)
        if np.max(np.abs(distance)) > tolerance:
            shown = _in_words(self.shift), _in_words(other.shift)
            return f"the means of their latents are {shown[0]} and {shown[1]}"
        return None


def _along_channels(value):
    return jnp.reshape(value, (1, 1, 1, -1))


def _in_words(value):
    if isinstance(value, tuple):
        return "(" + ", ".join(f"{v:.4g}" for v in value) + ")"
    return f"{value:.4g}"
