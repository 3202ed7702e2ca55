"""Mean and standard deviation of latents, by which the denoiser's are normalised."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ldm_jax.annotations import Array, Float


class LatentStatistics(NamedTuple):
    """Shift and scale that normalise latents: (z - shift) * scale.

    The paper scales by one factor for all channels, 1 / standard deviation, and keeps
    the mean (Rombach et al. 2022, Sec. G); that is a scalar `scale` and a `shift` of 0.
    They are stored as they are applied, not as mean and standard deviation, so that
    multiplying by such a factor is exact to the bit.

    Attributes:
      shift: Mean. On the host a float, or a tuple of one per channel; as arrays
        float32, [] or [c], or None for a scalar of 0, as even subtracting 0 changes how
        compilers round later results.
      scale: 1 / standard deviation, likewise but never None.
    """

    shift: Any = 0.0
    scale: Any = 1.0

    @classmethod
    def of(cls, mean: Sequence[Any], std: Sequence[Any]) -> "LatentStatistics":
        """Makes them from the means and standard deviations of channels.

        Args:
          mean: Mean per channel.
          std: Standard deviation per channel.

        Returns:
          LatentStatistics on the host.

        Raises:
          ValueError: If their numbers differ or are 0, or a value is out of range.
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
        """Inverse of `record`.

        Args:
          record: Record of a checkpoint; in old ones only "scaling_factor".

        Returns:
          LatentStatistics on the host.
        """
        shift, scale = record.get("shift_factor", 0.0), record["scaling_factor"]
        return cls(*(tuple(v) if isinstance(v, list) else v for v in (shift, scale)))

    def record(self) -> dict[str, Any]:
        """Returns the record for a checkpoint, in JSON types.

        Returns:
          {"scaling_factor": `scale`, "shift_factor": `shift`}, floats or lists of one
          per channel.
        """
        shift, scale = (np.asarray(v, np.float64).tolist() for v in self)
        return {"scaling_factor": scale, "shift_factor": shift}

    @property
    def per_channel(self) -> bool:
        """Whether each channel has its own statistics; only for those on the host."""
        return isinstance(self.scale, tuple) or isinstance(self.shift, tuple)

    def arrays(self) -> "LatentStatistics":
        """Converts them to float32 NumPy arrays, to be put on devices.

        Returns:
          LatentStatistics.
        """
        shift, scale = self
        if not self.per_channel and not shift:
            return LatentStatistics(None, np.float32(scale))
        return LatentStatistics(np.float32(shift), np.float32(scale))

    def check_channels(self, channels: int) -> None:
        """Checks that they fit latents with this number of channels.

        Args:
          channels: Channels of the latents.

        Raises:
          ValueError: If they have another number of channels.
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
        """Normalises latents to zero mean and unit variance.

        Args:
          latents: Latents of the first stage, [B, h, w, c].

        Returns:
          Normalised latents, same shape.
        """
        if self.shift is not None:
            latents = latents - _along_channels(self.shift)
        return latents * _along_channels(self.scale)

    def restore(
        self, latents: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height width channels"]:
        """Inverse of `normalise`.

        Args:
          latents: Latents of unit variance, [B, h, w, c].

        Returns:
          Latents of the first stage, same shape.
        """
        latents = latents / _along_channels(self.scale)
        if self.shift is None:
            return latents
        return latents + _along_channels(self.shift)

    def difference(
        self, other: "LatentStatistics", tolerance: float = 0.05
    ) -> str | None:
        """Describes how two differ, in words.

        Args:
          other: LatentStatistics on the host.
          tolerance: Difference to ignore, as a fraction of a standard deviation, as two
            runs may have measured them on different batches.

        Returns:
          A clause, or None if they agree.
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
