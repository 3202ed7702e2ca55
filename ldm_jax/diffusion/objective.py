"""The denoiser's training objective: target, loss weights, sampling of noise levels."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax import draws
from ldm_jax.annotations import Array, Float, Int, Key, Num
from ldm_jax.diffusion.posterior import (
    posterior,
    posterior_variance,
    previous_levels,
)
from ldm_jax.diffusion.schedule import (
    PREDICTION_TYPES,
    NoiseSchedule,
    SchedulePoint,
    target_for,
)


class LevelWeights(NamedTuple):
    """Loss weights of the noise levels of a batch's examples; each [B] or a scalar.

    Attributes:
      simple: Weight in the simple term, see `min_snr_weights`.
      elbo: Weight in the ELBO term, see `elbo_weights`.
      logvar: Log-variance l of the simple term, see `Objective.loss`.
    """

    simple: Any = 1.0
    elbo: Any = 1.0
    logvar: Any = 0.0


@dataclasses.dataclass(frozen=True)
class Objective:
    """The training objective of a denoiser; the config section `loss`.

    Attributes:
      prediction_type: What the network predicts, a row of PREDICTION_TYPES; set in the
        section `schedule`.
      loss_type: Row of LOSS_TYPES.
      simple_weight: Weight of the simple term.
      elbo_weight: Weight of the ELBO term.
      v_posterior: Variance in the ELBO term's weights, see `posterior_variance`.
      logvar_init: Initial log-variance per timestep, see `loss`.
      learn_logvar: Whether the log-variances are trained.
      min_snr_gamma: Maximum weight of a noise level in terms of x0, see
        `min_snr_weights`; None for equal weights as in the paper.
      offset_noise: Standard deviation of additional noise that all pixels of a channel
        share, so that the mean of an image is noised, too, and can be learned
        (Guttenberg 2023).
      timestep_sampling: Row of TIMESTEP_SAMPLINGS.
      logit_mean: Mean of the logit of t / T of "logit_normal" timesteps; above 0 more
        noise is drawn. A mean of log s corresponds to a sampler's `shift` of s.
      logit_std: Standard deviation of the logit.

    Raises:
      ValueError: If a choice is unknown or a number is out of its range.
    """

    prediction_type: str = "noise"
    loss_type: str = "l2"
    simple_weight: float = 1.0
    elbo_weight: float = 0.0
    v_posterior: float = 0.0
    logvar_init: float = 0.0
    learn_logvar: bool = False
    min_snr_gamma: float | None = None
    offset_noise: float = 0.0
    timestep_sampling: str = "uniform"
    logit_mean: float = 0.0
    logit_std: float = 1.0

    def __post_init__(self):
        _check_choice("prediction_type", self.prediction_type, PREDICTION_TYPES)
        _check_choice("loss_type", self.loss_type, LOSS_TYPES)
        _check_choice("timestep_sampling", self.timestep_sampling, TIMESTEP_SAMPLINGS)
        if self.min_snr_gamma is not None and not self.min_snr_gamma > 0:
            raise ValueError(
                f"min_snr_gamma must be more than 0, got {self.min_snr_gamma}: the "
                "paper's is 5, None is off"
            )
        for name in ("offset_noise", "logit_std"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")

    def init(self, schedule: NoiseSchedule) -> dict[str, Float[Array, " levels"]]:
        """Makes the parameters that the objective trains.

        Args:
          schedule: The T noise levels.

        Returns:
          {"logvar": float32 [T]} if log-variances are learned, else {}.
        """
        if not self.learn_logvar:
            return {}
        levels = schedule.num_train_timesteps
        return {"logvar": jnp.full(levels, self.logvar_init, jnp.float32)}

    def draw_timesteps(
        self, rng: Key[Array, ""], size: int, schedule: NoiseSchedule
    ) -> Int[Array, " batch"]:
        """Draws the timesteps at which examples are trained.

        Args:
          rng: Typed key.
          size: Number of examples B.
          schedule: The T noise levels.

        Returns:
          int32 [B] in [0, T).
        """
        draw, levels = TIMESTEP_SAMPLINGS[self.timestep_sampling], len(schedule.alpha)
        return draw(rng, size, levels, self.logit_mean, self.logit_std)

    def draw_noise(
        self, rng: Key[Array, ""], shape: tuple[int, ...]
    ) -> Float[Array, "batch height width channels"]:
        """Draws the noise of training: standard normal, plus `offset_noise` if set.

        Args:
          rng: Typed key.
          shape: (B, h, w, c).

        Returns:
          float32 of that shape.
        """
        noise = draws.normal(rng, shape)
        if not self.offset_noise:
            return noise
        rng = jax.random.fold_in(rng, 1)
        means = draws.normal(rng, (shape[0], 1, 1, shape[-1]))
        return noise + self.offset_noise * means

    def target(
        self,
        latents: Float[Array, "batch height width channels"],
        noise: Float[Array, "batch height width channels"],
        point: SchedulePoint,
    ) -> Float[Array, "batch height width channels"]:
        """Computes the network's target; see `schedule.target_for`.

        Args:
          latents: Clean latents z_0, [B, h, w, c].
          noise: The noise that was added, same shape.
          point: SchedulePoint [B].

        Returns:
          The target, same shape.
        """
        return target_for(self.prediction_type, latents, noise, point)

    def error(
        self,
        output: Float[Array, " batch *shape"],
        target: Float[Array, " batch *shape"],
    ) -> Float[Array, " batch"]:
        """Computes the error of each example.

        Args:
          output: Network output, [B, h, w, c].
          target: See `target`, same shape.

        Returns:
          Mean of the elementwise errors of LOSS_TYPES, float32 [B].
        """
        difference = output.astype(jnp.float32) - target
        axes = tuple(range(1, target.ndim))
        return LOSS_TYPES[self.loss_type](difference).mean(axis=axes)

    def levels(
        self,
        timesteps: Int[Array, " batch"],
        schedule: NoiseSchedule,
        logvar: Float[Array, " levels"] | None = None,
    ) -> LevelWeights:
        """Looks up the loss weights of the examples' noise levels.

        Args:
          timesteps: [B] in [0, T).
          schedule: The noise levels.
          logvar: Learned log-variances, [T]; None for `logvar_init` at every level.

        Returns:
          LevelWeights.
        """
        simple = 1.0
        if self.min_snr_gamma is not None:
            table = min_snr_weights(schedule, self.prediction_type, self.min_snr_gamma)
            simple = jnp.asarray(table)[timesteps]
        table = elbo_weights(schedule, self.prediction_type, self.v_posterior)
        elbo = jnp.asarray(table)[timesteps]
        tempered = self.logvar_init if logvar is None else logvar[timesteps]
        return LevelWeights(simple, elbo, tempered)

    def loss(
        self,
        output: Float[Array, " batch *shape"],
        target: Float[Array, " batch *shape"],
        levels: LevelWeights,
        weights: Num[Array, " batch"] | None = None,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Computes the training loss from the network's output and its target.

        Ho et al. 2020, Eq. 14 (simple) and Eq. 12 (ELBO), with CompVis' log-variance
        per timestep. With e the error of an example and w, v and l the `simple`, `elbo`
        and `logvar` of its noise level: simple_weight mean(w (e / exp(l) + l)) +
        elbo_weight mean(v e).

        Args:
          output: Network output, [B, h, w, c].
          target: See `target`, same shape.
          levels: See `levels`.
          weights: Weight of each example in the means, [B]; None for equal weights.

        Returns:
          (loss, metrics): float32 scalar, and a dict of the float32 scalars "loss",
          "loss_simple", "loss_vlb" and "loss_vs_zeros" (ratio of the simple loss to
          that of a network which outputs zeros: 1 if a model has learned nothing).
        """
        error = self.error(output, target)
        error_of_zeros = self.error(jnp.zeros_like(target), target)
        loss_simple = jnp.average(error, weights=weights)
        gamma = levels.simple * (error / jnp.exp(levels.logvar) + levels.logvar)
        gamma = jnp.average(gamma, weights=weights)
        loss_vlb = jnp.average(error * levels.elbo, weights=weights)
        loss = self.simple_weight * gamma + self.elbo_weight * loss_vlb
        return loss, {
            "loss": loss,
            "loss_simple": loss_simple,
            "loss_vlb": loss_vlb,
            "loss_vs_zeros": loss_simple / jnp.average(error_of_zeros, weights=weights),
        }


def _check_choice(name, value, table):
    if value not in table:
        raise ValueError(f"unknown {name} {value!r}: choose one of {', '.join(table)}")


def elbo_weights(
    schedule: NoiseSchedule, prediction_type: str, v_posterior: float = 0.0
) -> Float[np.ndarray, " levels"]:
    """Computes the weights that turn the simple error into the terms of the ELBO.

    If the prediction type defines weights, these are used: "x0" has those of CompVis,
    "v" and "velocity" equal weights. Otherwise the weights are those of the KL
    divergence of Ho et al. 2020, Eq. 8, for the error in x0 that the output's error
    implies, with the weight of x0 in the posterior mean of Eq. 7; for "noise" that is
    their Eq. 12. The first weight, which would be infinite, repeats the second.

    Args:
      schedule: NoiseSchedule.
      prediction_type: Row of schedule.PREDICTION_TYPES.
      v_posterior: Blend of the posterior variance, see `posterior_variance`.

    Returns:
      float32 [T].
    """
    row = PREDICTION_TYPES[prediction_type]
    if row.elbo_weights is None:
        coefficients = posterior(schedule.table, previous_levels(schedule))
        variance = posterior_variance(coefficients, v_posterior)
        variance[0] = np.inf
        moved = coefficients.x0_weight * _moves(row, schedule)
        weights = moved**2 / (2 * variance)
    else:
        weights = np.array(row.elbo_weights(schedule))
    weights[0] = weights[1]
    return weights.astype(np.float32)


def min_snr_weights(
    schedule: NoiseSchedule, prediction_type: str, gamma: float
) -> Float[np.ndarray, " levels"]:
    """Computes min-SNR weights of the simple error, which limit those of low noise.

    Hang et al. 2023, Sec. 3.4: min(SNR, gamma) for the error in x0, and the equivalent
    for the error in other outputs. As there, a level of pure noise has weight 0.

    Args:
      schedule: NoiseSchedule.
      prediction_type: Row of schedule.PREDICTION_TYPES.
      gamma: Maximum weight in terms of x0; the paper's is 5.

    Returns:
      float32 [T].
    """
    alpha, sigma = schedule.alpha, schedule.sigma
    moves = _moves(PREDICTION_TYPES[prediction_type], schedule)
    weights = np.minimum((alpha / sigma) ** 2, gamma) * moves**2
    return np.broadcast_to(weights, alpha.shape).astype(np.float32)


def _moves(row, schedule):
    """Derivative of x0 by the output, in which it is linear, at each level."""
    return np.asarray(row.x0(1.0, 0.0, schedule.alpha, schedule.sigma))


def _uniform(rng, size, num_timesteps, mean, std):
    return jax.random.randint(rng, (size,), 0, num_timesteps)


def _logit_normal(rng, size, num_timesteps, mean, std):
    # Esser et al. 2024, Eq. 19.
    time = jax.nn.sigmoid(mean + std * jax.random.normal(rng, (size,)))
    timesteps = (time * num_timesteps).astype(jnp.int32)
    return jnp.minimum(timesteps, num_timesteps - 1)


# Distributions of timesteps: (rng, size, T, mean, std) -> int32 [size] in [0, T).
TIMESTEP_SAMPLINGS = {"uniform": _uniform, "logit_normal": _logit_normal}

# Elementwise errors: difference -> error, same shape.
LOSS_TYPES = {"l1": jnp.abs, "l2": jnp.square}
