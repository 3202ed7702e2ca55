"""Samplers by name; see `sampling_method` for their interface."""

import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.annotations import Array, Float
from ldm_jax.diffusion.posterior import posterior, posterior_variance
from ldm_jax.diffusion.sampling_method import SamplingMethod
from ldm_jax.diffusion.schedule import SchedulePoint


def _no_state(latents):
    """The `init` of samplers without state."""
    return ()


def _safe_sqrt(value):
    """Square root of a difference that rounding may make negative; then 0."""
    return jnp.sqrt(jnp.maximum(value, 0.0))


def _move(
    x0: Float[Array, " batch *shape"],
    noise_pred: Float[Array, " batch *shape"],
    slope: Float[Array, " batch *shape"],
    now: SchedulePoint,
    next: SchedulePoint,
) -> Float[Array, " batch *shape"]:
    """Moves latents to the next level along a slope that the sampler has computed.

    With sigma / alpha as time, the slope of the probability flow ODE is the noise
    (Karras et al. 2022, Sec. 3); DDIM's step (Song et al. 2021, Eq. 13) uses the
    predicted noise. At pure noise that time is infinite, and the step is DDIM's.

    Args:
      x0: Predicted clean latents at the latents to move, [B, ...].
      noise_pred: Predicted noise there; together with x0 it determines the latents.
      slope: Noise to move along, [B, ...].
      now: SchedulePoint of the latents.
      next: SchedulePoint to move to.

    Returns:
      Latents at `next`, [B, ...].
    """
    signal = now.alpha > 0
    time = jnp.where(signal, now.sigma / now.alpha, 0.0)
    slope = jnp.where(signal, slope, noise_pred)
    return next.alpha * (x0 + time * (noise_pred - slope)) + next.sigma * slope


def ddpm(v_posterior: float = 0.0) -> SamplingMethod:
    """Ancestral sampling (Ho et al. 2020, Algorithm 2), for any grid.

    Args:
      v_posterior: Variance of a step, from 0 (the posterior's) to 1 (beta).

    Returns:
      A SamplingMethod of order 1.
    """

    def step(predict, latents, state, now, next, noise):
        """Draws x0_weight x0 + latents_weight latents + std noise (Eq. 6 and 7)."""
        x0, _ = predict(latents, now)
        coefficients = posterior(now, next)
        variance = posterior_variance(coefficients, v_posterior)
        # No noise in a step to clean data, whatever the variance there.
        std = jnp.where(next.sigma > 0, _safe_sqrt(variance), 0.0)
        mean = coefficients.x0_weight * x0 + coefficients.latents_weight * latents
        return mean + std * noise, state

    return SamplingMethod(init=_no_state, step=step, order=1, stochastic=True)


def ddim(eta: float = 0.0) -> SamplingMethod:
    """Denoising diffusion implicit models (Song et al. 2021, Eq. 12 and 16).

    Args:
      eta: Fraction of the ancestral noise: 0 is deterministic, 1 is ancestral.

    Returns:
      A SamplingMethod of order 1.
    """

    def step(predict, latents, state, now, next, noise):
        """Moves to alpha x0 + sqrt(sigma^2 - std^2) noise_pred + std noise (Eq. 12)."""
        x0, noise_pred = predict(latents, now)
        if not eta:
            return next.alpha * x0 + next.sigma * noise_pred, state
        std = eta * _safe_sqrt(posterior(now, next).variance)
        direction = _safe_sqrt(next.sigma**2 - std**2)
        return next.alpha * x0 + direction * noise_pred + std * noise, state

    return SamplingMethod(init=_no_state, step=step, order=1, stochastic=eta > 0)


def euler() -> SamplingMethod:
    """Euler's method on the probability flow ODE (Karras et al. 2022, Sec. 3).

    Its time is sigma / alpha and its slope the noise, which makes it DDIM's step. On
    the straight path of rectified flow, Euler's step with the velocity, z + (sigma_next
    - sigma) (noise - x0), is the same (Liu et al. 2023, Eq. 1).

    Returns:
      A SamplingMethod of order 1.
    """
    return ddim(eta=0.0)


def euler_ancestral(eta: float = 1.0) -> SamplingMethod:
    """Euler's method to a cleaner level than the next, then added noise up to it.

    Known from k-diffusion. In terms of alpha and sigma it is DDIM with noise (Song et
    al. 2021, Eq. 12), which is ancestral sampling for `eta` 1.

    Args:
      eta: Fraction of the ancestral noise.

    Returns:
      A SamplingMethod of order 1.
    """
    return ddim(eta)


def heun() -> SamplingMethod:
    """Heun's method on the probability flow ODE (Karras et al. 2022, Algorithm 1).

    Every transition except the last is done twice: once to predict, once to correct
    with the mean of the slopes at both ends. The last one is Euler's, as its end may be
    clean data, where the noise is not defined.

    Returns:
      A SamplingMethod of order 2 with two evaluations in each step but the last.
    """

    def init(latents):
        return {
            "correcting": jnp.bool_(False),
            "x0": jnp.zeros_like(latents),
            "noise": jnp.zeros_like(latents),
        }

    def step(predict, latents, state, now, next, noise):
        """Moves by the first slope, then again by the mean of both (lines 5 and 8)."""

        def first_or(saved, current):
            return jnp.where(state["correcting"], saved, current)

        x0, noise_pred = predict(latents, jax.tree.map(first_or, next, now))
        first_x0 = first_or(state["x0"], x0).astype(latents.dtype)
        first_noise = first_or(state["noise"], noise_pred).astype(latents.dtype)
        slope = (first_noise + noise_pred) / 2
        state = {
            "correcting": ~state["correcting"],
            "x0": first_x0,
            "noise": first_noise,
        }
        return _move(first_x0, first_noise, slope, now, next), state

    def evaluations(num_steps):
        return np.append(np.full(num_steps - 1, 2), 1)

    return SamplingMethod(init=init, step=step, order=2, evaluations=evaluations)


# Weights of the noise predictions, newest first, by the number of earlier evaluations
# (Liu et al. 2022, Eq. 9-12): Euler's predictor, Heun's corrector of the same first
# step, then Adams-Bashforth of order 2, 3 and finally 4.
_PLMS_WEIGHTS = np.array(
    [
        [1, 0, 0, 0],
        [1 / 2, 1 / 2, 0, 0],
        [3 / 2, -1 / 2, 0, 0],
        [23 / 12, -16 / 12, 5 / 12, 0],
        [55 / 24, -59 / 24, 37 / 24, -9 / 24],
    ],
    np.float32,
)


def plms() -> SamplingMethod:
    """Pseudo linear multi-step sampling, deterministic (Liu et al. 2022, Eq. 12).

    The first transition is done twice, with one evaluation each: once to predict, once
    to correct. The compiled program contains the network only once, for all steps.

    Returns:
      A SamplingMethod of order 2 with one evaluation more than steps.
    """

    def init(latents):
        return {
            "count": jnp.int32(0),
            "x0": jnp.zeros_like(latents),
            "history": (jnp.zeros_like(latents),) * 3,
        }

    def step(predict, latents, state, now, next, noise):
        """Moves along a weighted sum of the latest noise predictions (Eq. 12)."""
        count, history = state["count"], state["history"]
        # At clean data there is no noise to correct with: the prediction is kept.
        correcting, correctable = count == 1, next.sigma > 0
        where = functools.partial(jnp.where, correcting)
        ahead = functools.partial(jnp.where, correcting & correctable)
        x0, noise_pred = predict(latents, jax.tree.map(ahead, next, now))
        x0, noise_pred = x0.astype(latents.dtype), noise_pred.astype(latents.dtype)
        weights = jnp.asarray(_PLMS_WEIGHTS, latents.dtype)[jnp.minimum(count, 4)]
        slope = weights[0] * noise_pred
        for weight, past in zip(weights[1:], history, strict=True):
            slope += weight * past
        slope = jnp.where(correcting & ~correctable, history[0], slope)
        origin = where(state["x0"], x0), where(history[0], noise_pred)
        # The corrector's evaluation is not kept: it is repeated with better latents.
        pushed = (noise_pred, *history[:2])
        state = {
            "count": count + 1,
            "x0": x0,
            "history": jax.tree.map(where, history, pushed),
        }
        return _move(*origin, slope, now, next), state

    def evaluations(num_steps):
        return np.append(2, np.ones(num_steps - 1, int))

    return SamplingMethod(init=init, step=step, order=2, evaluations=evaluations)


def dpmpp_2m(eta: float = 0.0) -> SamplingMethod:
    """DPM-Solver++(2M), predicting clean latents (Lu et al. 2022, Alg. 2).

    The first step, and steps from pure noise or to clean data, are of first order.

    Args:
      eta: Fraction of the noise of the reverse diffusion: 0 is the probability flow
        ODE, 1 is SDE-DPM-Solver++(2M), whose order refers to the distribution of its
        samples.

    Returns:
      A SamplingMethod of order 2.
    """

    def init(latents):
        return {"x0": jnp.zeros_like(latents), "width": jnp.array(jnp.inf)}

    def step(predict, latents, state, now, next, noise):
        """Moves to sigma / sigma_now latents - alpha (exp(-h) - 1) D (Alg. 2).

        D is x0 + change / 2 and h the width; with `eta` it is the step of the SDE.
        """
        x0, _ = predict(latents, now)
        width = _width(now, next)
        change = _change(x0, state["x0"], state["width"], width)
        decay = jnp.exp(-eta * width) if eta else 1.0
        moved = next.sigma / now.sigma * decay * latents
        moved -= next.alpha * jnp.expm1(-(1 + eta) * width) * (x0 + change / 2)
        if eta:
            moved += next.sigma * _safe_sqrt(-jnp.expm1(-2 * eta * width)) * noise
        return moved, {"x0": x0, "width": width}

    return SamplingMethod(init=init, step=step, order=2, stochastic=eta > 0)


def dpmpp_2m_sde(eta: float = 1.0) -> SamplingMethod:
    """SDE-DPM-Solver++(2M), for the diffusion SDE (Lu et al. 2022); see `dpmpp_2m`.

    Args:
      eta: Fraction of the noise of the reverse diffusion.

    Returns:
      A SamplingMethod of order 2, in distribution.
    """
    return dpmpp_2m(eta)


def unipc() -> SamplingMethod:
    """UniPC-2 with B_2(h), predicting clean latents (Zhao et al. 2023, Alg. 1 and 2).

    Its predictor is DPM-Solver++(2M). The corrector is applied in the next step, after
    the network has been evaluated at the predicted latents, so it costs no evaluation.

    Returns:
      A SamplingMethod of order 3.
    """

    def init(latents):
        zeros, infinite = jnp.zeros_like(latents), jnp.array(jnp.inf)
        return {
            "latents": latents,
            "x0": zeros,
            "change": zeros,
            "before": infinite,
            "width": infinite,
        }

    def step(predict, latents, state, now, next, noise):
        """Corrects latents (UniC, Alg. 1), then predicts the next (UniP, Alg. 2)."""
        x0, _ = predict(latents, now)
        # Latents that differ from the prediction were replaced by known ones: these
        # need no correction.
        free = latents == state["latents"]
        latents = jnp.where(free, latents + _correction(x0, state, now), latents)
        width = _width(now, next)
        change = _change(x0, state["x0"], state["width"], width)
        moved = next.sigma / now.sigma * latents
        moved -= next.alpha * jnp.expm1(-width) * (x0 + change / 2)
        return moved, {
            "latents": moved,
            "x0": x0,
            "change": change,
            "before": state["width"],
            "width": width,
        }

    return SamplingMethod(init=init, step=step, order=3)


def _correction(x0, state, now):
    """The correction that UniC-2 adds to the last step's prediction (Algorithm 1)."""
    # No correction before the first step, after a step from pure noise, or after a step
    # of width 0.
    correctable = jnp.isfinite(state["width"]) & (state["width"] > 0)
    width = jnp.where(correctable, state["width"], 1.0)
    before = state["before"]
    basis = -jnp.expm1(-width)
    # The weights that make it exact if x0 is a polynomial in log-SNR.
    first = (1 - basis / width) / basis
    second = (1 - 2 * (1 - basis / width) / width) / basis
    past = (first - second) / (1 + before / width)
    # The first step has no past; the usual weight of its end is then 1/2.
    known = jnp.isfinite(before)
    past = jnp.where(known, past, 0.0)
    end = jnp.where(known, first - past, 0.5)
    change = state["change"]
    corrected = past * change + end * (x0 - state["x0"])
    correction = now.alpha * basis * (corrected - change / 2)
    return jnp.where(correctable, correction, 0.0)


def _width(now, next):
    """Width of a step in log(alpha / sigma); infinite at pure noise or clean data."""
    here, there = (jnp.log(point.alpha) - jnp.log(point.sigma) for point in (now, next))
    return there - here


def _change(x0, last_x0, last_width, width):
    """Change of x0 over a step, extrapolated from the last one.

    Zero if that is unknown, as after a step of width 0 (a grid may repeat a level), or
    if the step leads to clean data.
    """
    known = jnp.isfinite(width) & (last_width > 0)
    ratio = jnp.where(known, width / jnp.where(known, last_width, 1.0), 0.0)
    return ratio * (x0 - last_x0)


def options_of(name: str) -> tuple[str, ...]:
    """Lists the options of a sampler.

    Args:
      name: Row of SAMPLERS.

    Returns:
      The names of its constructor's arguments.

    Raises:
      ValueError: If the name is unknown.
    """
    if name not in SAMPLERS:
        raise ValueError(
            f"unknown sampler {name!r}: choose one of {', '.join(SAMPLERS)}"
        )
    return tuple(inspect.signature(SAMPLERS[name]).parameters)


def make_sampler(name: str, **options: Any) -> SamplingMethod:
    """Makes the sampler called `name`.

    Args:
      name: Row of SAMPLERS.
      **options: Options of that sampler, such as `eta`; None for its default.

    Returns:
      A SamplingMethod.

    Raises:
      ValueError: If the name is unknown, the sampler does not have an option, or one of
        FRACTIONS is not in [0, 1].
    """
    given = {key: value for key, value in options.items() if value is not None}
    known = options_of(name)
    for key, value in given.items():
        if key not in known:
            raise ValueError(
                f"sampler {name!r} has no option {key!r}: it takes "
                f"{', '.join(known) or 'none'}"
            )
        if key in FRACTIONS and not 0 <= value <= 1:
            raise ValueError(f"{key} must be in [0, 1], got {value}")
    return SAMPLERS[name](**given)


# Options of any sampler that are fractions.
FRACTIONS = ("eta", "v_posterior")

# Constructors: (**options) -> SamplingMethod. Euler's method has the names that users
# look for.
SAMPLERS = {
    "ddpm": ddpm,
    "ddim": ddim,
    "plms": plms,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "unipc": unipc,
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "flow_euler": euler,
}
