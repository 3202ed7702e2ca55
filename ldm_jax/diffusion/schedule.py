"""Noise schedules: how much signal and noise the latents have at each timestep.

All other code uses a schedule through `SchedulePoint`s, that is through `alpha` and
`sigma` of z_t = alpha z_0 + sigma noise, so training, samplers and tests share one set
of formulas. Tables are computed in float64 with NumPy and converted to float32 on the
device.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ldm_jax import ranges
from ldm_jax.annotations import Array, Float, Int, Num


class SchedulePoint(NamedTuple):
    """One noise level, or an array of them.

    Attributes:
      timestep: Timestep for the network, in [0, T - 1]; 0 is the least noise. int32, or
        float32 on a grid with levels between those of training.
      alpha: Scale of the signal in z_t = alpha z_0 + sigma noise.
      sigma: Scale of the noise.
    """

    timestep: Any
    alpha: Any
    sigma: Any


@dataclasses.dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """The noise levels that a model is trained on, least noise first.

    Attributes:
      alpha: Scale of the signal at each level, float64 [T], decreasing, possibly to 0.
      sigma: Scale of the noise at each level, float64 [T], increasing.
      power: alpha^power + sigma^power is 1: 2 for variance-preserving schedules (Ho et
        al. 2020, Sec. 2), 1 for the straight path of rectified flow (Liu et al. 2023).
    """

    alpha: np.ndarray
    sigma: np.ndarray
    power: int = 2

    @property
    def num_train_timesteps(self) -> int:
        """Number of noise levels T."""
        return len(self.alpha)

    @property
    def reaches_pure_noise(self) -> bool:
        """Whether the last level has no signal at all."""
        return bool(self.alpha[-1] == 0)

    @functools.cached_property
    def alphas_cumprod(self) -> Float[np.ndarray, " levels"]:
        """Signal variance alpha_t^2 of each level, float64 [T]."""
        return self.alpha**2

    @functools.cached_property
    def betas(self) -> Float[np.ndarray, " levels"]:
        """Variance that each forward step adds, float64 [T]; only for `power` 2."""
        before = np.append(1.0, self.alphas_cumprod[:-1])
        return 1.0 - self.alphas_cumprod / before

    def identity(self) -> dict[str, Any]:
        """Identifies the noise levels, independently of the options that made them.

        Returns:
          JSON-like dict of their number, and of alpha at three of them in six digits.
        """
        places = {"first": 0, "middle": len(self.alpha) // 2, "last": -1}
        alphas = {f"{name}_alpha": self.alpha[index] for name, index in places.items()}
        return {
            "num_train_timesteps": len(self.alpha),
            **{name: f"{alpha:.6g}" for name, alpha in alphas.items()},
        }

    @functools.cached_property
    def table(self) -> SchedulePoint:
        """All levels as one SchedulePoint of float64 [T], least noise first."""
        timesteps = np.arange(self.num_train_timesteps, dtype=np.int32)
        return SchedulePoint(timesteps, self.alpha, self.sigma)

    def at(self, timesteps: Int[Array, "*shape"]) -> SchedulePoint:
        """Looks up the levels of `timesteps`.

        Args:
          timesteps: int32, any shape, in [0, T).

        Returns:
          SchedulePoint on the device, alpha and sigma float32 of the same shape.
        """
        alpha = jnp.asarray(self.alpha, jnp.float32)
        sigma = jnp.asarray(self.sigma, jnp.float32)
        return SchedulePoint(timesteps, alpha[timesteps], sigma[timesteps])

    def between(self, timesteps: Num[np.ndarray, "*shape"]) -> SchedulePoint:
        """Computes levels that may be between those of the table.

        Interpolates alpha^power and sigma^power, which add up to 1 (for `power` 2 the
        variances), so that levels without signal stay finite.

        Args:
          timesteps: NumPy array, integer or float, in [0, T - 1].

        Returns:
          SchedulePoint of float64, shaped like `timesteps`.
        """
        if np.issubdtype(timesteps.dtype, np.integer):
            return SchedulePoint(
                timesteps, self.alpha[timesteps], self.sigma[timesteps]
            )
        alpha, sigma = (
            np.interp(timesteps, self.table.timestep, scale**self.power)
            for scale in (self.alpha, self.sigma)
        )
        root = 1 / self.power
        return SchedulePoint(timesteps, alpha**root, sigma**root)

    def in_proportion(
        self,
        alpha: float | Float[np.ndarray, "*shape"],
        sigma: Float[np.ndarray, "*shape"],
    ) -> SchedulePoint:
        """Finds the levels with the given ratios of signal to noise.

        The inverse of `between`; levels beyond the table get its nearest timestep.

        Args:
          alpha: Any positive multiple of the scale of the signal, a scalar or [N].
          sigma: The same multiple of the scale of the noise, [N].

        Returns:
          SchedulePoint of float64 [N], timesteps included.
        """
        total = alpha**self.power + sigma**self.power
        noise = sigma**self.power / total
        root = 1 / self.power
        return SchedulePoint(
            np.interp(noise, self.sigma**self.power, self.table.timestep),
            alpha / total**root,
            sigma / total**root,
        )


def make_schedule(
    kind: str = "scaled_linear",
    num_train_timesteps: int = 1000,
    beta_start: float = 0.0015,
    beta_end: float = 0.0195,
    cosine_s: float = 0.008,
    zero_terminal_snr: bool = False,
) -> NoiseSchedule:
    """Makes a noise schedule from the config section `schedule`.

    Args:
      kind: Row of BETAS, or of WITHOUT_BETAS. The paper's models use "scaled_linear",
        which CompVis calls "linear". "rectified_flow" is the straight path from data to
        noise, sigma = (t + 1) / T, and ignores the betas and the options after them.
      num_train_timesteps: Number of noise levels T, 2 to 100,000.
      beta_start: First beta of the linear kinds (for "sqrt" its square); "cosine"
        ignores this and the next.
      beta_end: Last beta, likewise.
      cosine_s: Offset of the cosine schedule (Nichol & Dhariwal 2021, Eq. 17).
      zero_terminal_snr: Whether to rescale the levels so that the last one is pure
        noise (Lin et al. 2023, Algorithm 1).

    Returns:
      A NoiseSchedule.

    Raises:
      ValueError: If the kind is unknown, the number of levels is out of its range, or a
        beta is not in (0, 1).
    """
    kinds = (*BETAS, *WITHOUT_BETAS)
    if kind not in kinds:
        raise ValueError(
            f"unknown schedule kind {kind!r}: choose one of {', '.join(kinds)}"
        )
    levels = ranges.SECTIONS["schedule"]["num_train_timesteps"]
    ranges.check_value(levels, num_train_timesteps, "num_train_timesteps")
    if kind == "rectified_flow":
        sigma = np.arange(1, num_train_timesteps + 1) / num_train_timesteps
        return NoiseSchedule(1.0 - sigma, sigma, power=1)
    betas = BETAS[kind](num_train_timesteps, beta_start, beta_end, cosine_s)
    if not (np.all(betas > 0) and np.all(betas < 1)):
        raise ValueError(
            f"schedule {kind!r} needs every beta in (0, 1), got "
            f"{np.min(betas):g} to {np.max(betas):g}: change beta_start "
            f"({beta_start:g}) or beta_end ({beta_end:g})"
        )
    signal = np.cumprod(1.0 - betas)
    alpha = np.sqrt(signal)
    if zero_terminal_snr:
        # Shifts alpha so that the last is 0, and scales it so that the first is kept.
        alpha = (alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))
        signal = alpha**2
    return NoiseSchedule(alpha, np.sqrt(1.0 - signal))


def add_noise(
    latents: Float[Array, "*shape"], noise: Float[Array, "*shape"], point: SchedulePoint
) -> Float[Array, "*shape"]:
    """Draws z_t given z_0: alpha z_0 + sigma noise (Ho et al. 2020, Eq. 4).

    Args:
      latents: Clean latents z_0, [B, ...].
      noise: Standard normal, same shape.
      point: SchedulePoint, scalar or [B].

    Returns:
      Noisy latents, same shape.
    """
    alpha, sigma = _expand(point.alpha, latents), _expand(point.sigma, latents)
    return alpha * latents + sigma * noise


def check_prediction(schedule: NoiseSchedule, prediction_type: str) -> None:
    """Checks that a network's output determines x0 and noise at every level.

    Args:
      schedule: The noise levels.
      prediction_type: Row of PREDICTION_TYPES.

    Raises:
      ValueError: If `prediction_type` does not work with the schedule.
    """
    found = _found_again(_prediction_row(prediction_type), schedule)
    if _is_example(found):
        return
    what = (
        "does not give back x0 and noise on this schedule, as 'v' does not where the "
        "variance is not preserved"
        if np.all(np.isfinite(found))
        else "says nothing about latents that hold no signal, which zero_terminal_snr "
        "and rectified_flow have"
    )
    rows = PREDICTION_TYPES.items()
    others = [name for name, row in rows if _is_example(_found_again(row, schedule))]
    raise ValueError(
        f"prediction_type {prediction_type!r} {what}: choose one of {', '.join(others)}"
    )


# A pixel's x0 and noise, [2, 1].
_EXAMPLE = np.array([[1.0], [-0.5]])


def _is_example(found):
    return np.all(np.abs(found - _EXAMPLE) < 1e-2)


def _found_again(row, schedule):
    """x0 and noise of _EXAMPLE, recovered from a perfect network's output, [2, T]."""
    alpha, sigma = schedule.alpha, schedule.sigma
    x0, noise = (np.full_like(alpha, value) for value in _EXAMPLE[:, 0])
    latents = alpha * x0 + sigma * noise
    # What cannot be recovered becomes inf or nan, which the caller checks.
    with np.errstate(all="ignore"):
        output = row.target(x0, noise, alpha, sigma)
        inverses = [f(output, latents, alpha, sigma) for f in (row.x0, row.noise)]
    found = np.stack([np.asarray(value) for value in inverses])
    # Near the ends of the schedule only finiteness is checked; elsewhere single
    # precision is enough.
    dim = (np.minimum(alpha, sigma) < 1e-2) & np.isfinite(found)
    return np.where(dim, _EXAMPLE, found)


def target_for(
    prediction_type: str,
    latents: Float[Array, "*shape"],
    noise: Float[Array, "*shape"],
    point: SchedulePoint,
) -> Float[Array, "*shape"]:
    """Computes the network's training target for z_t = alpha z_0 + sigma noise.

    Args:
      prediction_type: Row of PREDICTION_TYPES.
      latents: Clean latents z_0, [B, ...].
      noise: The noise that was added, same shape.
      point: SchedulePoint, scalar or [B].

    Returns:
      The training target, same shape.

    Raises:
      ValueError: If `prediction_type` is unknown.
    """
    row = _prediction_row(prediction_type)
    alpha, sigma = _expand(point.alpha, latents), _expand(point.sigma, latents)
    return row.target(latents, noise, alpha, sigma)


def predict_x0(
    output: Float[Array, "*shape"],
    latents: Float[Array, "*shape"],
    point: SchedulePoint,
    prediction_type: str,
) -> Float[Array, "*shape"]:
    """Computes the clean latents that a network output implies.

    Inverts z_t = alpha z_0 + sigma noise for z_0 (Ho et al. 2020, Eq. 4; for "v":
    Salimans & Ho 2022, Sec. 4).

    Args:
      output: Network output at (latents, point), [B, h, w, c].
      latents: Noisy latents z_t, same shape, in the scale of unit-variance latents.
      point: SchedulePoint of the latents, scalar or [B].
      prediction_type: What `output` predicts, a row of PREDICTION_TYPES.

    Returns:
      Predicted z_0, same shape, in the scale of `latents`; not clipped. Infinite where
      alpha is 0 and the network predicts noise.

    Raises:
      ValueError: If `prediction_type` is unknown.
    """
    row = _prediction_row(prediction_type)
    alpha, sigma = _expand(point.alpha, latents), _expand(point.sigma, latents)
    return row.x0(output, latents, alpha, sigma)


def predict_noise(
    output: Float[Array, "*shape"],
    latents: Float[Array, "*shape"],
    point: SchedulePoint,
    prediction_type: str,
) -> Float[Array, "*shape"]:
    """Computes the noise that a network output implies, like `predict_x0` for z_0.

    Args:
      output: Network output at (latents, point), [B, h, w, c].
      latents: Noisy latents z_t, same shape.
      point: SchedulePoint of the latents, scalar or [B].
      prediction_type: What `output` predicts, a row of PREDICTION_TYPES.

    Returns:
      Predicted noise, same shape; infinite where sigma is 0 and the network predicts
      x0.

    Raises:
      ValueError: If `prediction_type` is unknown.
    """
    row = _prediction_row(prediction_type)
    alpha, sigma = _expand(point.alpha, latents), _expand(point.sigma, latents)
    return row.noise(output, latents, alpha, sigma)


def _expand(values, like):
    """Reshapes scalars or [B] so that they broadcast over trailing axes of `like`."""
    values = jnp.asarray(values)
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


def _prediction_row(prediction_type):
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(
            f"unknown prediction_type {prediction_type!r}: choose one of "
            f"{', '.join(PREDICTION_TYPES)}"
        )
    return PREDICTION_TYPES[prediction_type]


def _scaled_linear(num, start, end, cosine_s):
    return np.linspace(start**0.5, end**0.5, num) ** 2


def _linear(num, start, end, cosine_s):
    return np.linspace(start, end, num)


def _cosine(num, start, end, cosine_s):
    # Nichol & Dhariwal 2021, Eq. 17; the clip keeps the last step from being singular.
    time = np.arange(num + 1) / num
    signal = np.cos((time + cosine_s) / (1 + cosine_s) * np.pi / 2) ** 2
    return np.clip(1 - signal[1:] / signal[:-1], 0, 0.999)


def _sqrt(num, start, end, cosine_s):
    return np.linspace(start, end, num) ** 0.5


# Betas of each kind: (num_train_timesteps, beta_start, beta_end, cosine_s) -> [T].
BETAS = {
    "scaled_linear": _scaled_linear,
    "linear": _linear,
    "cosine": _cosine,
    "sqrt": _sqrt,
}

# Kinds of schedules without betas, which `make_schedule` makes itself.
WITHOUT_BETAS = ("rectified_flow",)


class PredictionType(NamedTuple):
    """One parametrisation of the network's output.

    Attributes:
      target: (x0, noise, alpha, sigma) -> what the network should predict.
      x0: (output, latents, alpha, sigma) -> the clean latents that it implies.
      noise: (output, latents, alpha, sigma) -> the noise that it implies.
      elbo_weights: schedule -> the weights of the error in the ELBO term, float64 [T];
        None for those that follow from `x0`; see `objective.elbo_weights`.

    The functions also accept NumPy arrays. `check_prediction` tests whether a type
    works with a schedule.
    """

    target: Callable
    x0: Callable
    noise: Callable
    elbo_weights: Callable | None = None


def _compvis_weights_of_x0(schedule):
    # Literally as in CompVis: its checkpoints were trained without the intended
    # parentheses, 2 (1 - signal).
    signal = schedule.alphas_cumprod
    return 0.5 * np.sqrt(signal) / (2.0 * 1 - signal)


def _equal_weights(schedule):
    # As in the successors of CompVis' code.
    return np.ones_like(schedule.alpha)


# "v" is for variance-preserving schedules. The inverses of "velocity" = noise - x0
# divide by alpha + sigma, so it is well defined on every schedule; it is dz/dt only on
# the straight path of rectified flow.
PREDICTION_TYPES = {
    "noise": PredictionType(
        target=lambda x0, noise, alpha, sigma: noise,
        x0=lambda out, z, alpha, sigma: (z - sigma * out) / alpha,
        noise=lambda out, z, alpha, sigma: out,
    ),
    "x0": PredictionType(
        target=lambda x0, noise, alpha, sigma: x0,
        x0=lambda out, z, alpha, sigma: out,
        noise=lambda out, z, alpha, sigma: (z - alpha * out) / sigma,
        elbo_weights=_compvis_weights_of_x0,
    ),
    "v": PredictionType(
        target=lambda x0, noise, alpha, sigma: alpha * noise - sigma * x0,
        x0=lambda out, z, alpha, sigma: alpha * z - sigma * out,
        noise=lambda out, z, alpha, sigma: sigma * z + alpha * out,
        elbo_weights=_equal_weights,
    ),
    "velocity": PredictionType(
        target=lambda x0, noise, alpha, sigma: noise - x0,
        x0=lambda out, z, alpha, sigma: (z - sigma * out) / (alpha + sigma),
        noise=lambda out, z, alpha, sigma: (z + alpha * out) / (alpha + sigma),
        elbo_weights=_equal_weights,
    ),
}
