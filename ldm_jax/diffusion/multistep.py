"""Samplers that make steps of higher order from the predictions of earlier steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.diffusion.sampler import Sampler, move, safe_sqrt

# Weights of the noise predictions, newest first, by how many evaluations came before
# (Liu et al. 2022, Eq. 9-12): Euler's predictor, Heun's corrector of the same first
# step, then Adams-Bashforth of order 2, 3 and, from there on, 4.
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


def plms():
    """Pseudo linear multi-step sampling (Liu et al. 2022, PNDM), deterministic.

    Its first step takes two evaluations. It therefore sees its first transition twice:
    once to predict, once to correct. All steps share one evaluation in the program.
    """

    def init(latents):
        return {
            "count": jnp.int32(0),
            "x0": jnp.zeros_like(latents),
            "history": (jnp.zeros_like(latents),) * 3,
        }

    def step(predict, latents, state, now, next, noise):
        count, history = state["count"], state["history"]
        # Clean data holds no noise to correct with: the first step stays as predicted.
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
        # The corrector's own evaluation is made again, from better latents.
        pushed = (noise_pred, *history[:2])
        state = {
            "count": count + 1,
            "x0": x0,
            "history": jax.tree.map(where, history, pushed),
        }
        return move(*origin, slope, now, next), state

    def evaluations(num_steps):
        return np.append(2, np.ones(num_steps - 1, int))

    return Sampler(init=init, step=step, order=2, evaluations=evaluations)


def dpmpp_2m(eta=0.0):
    """DPM-Solver++(2M), in the prediction of clean latents (Lu et al. 2022, Alg. 2).

    The first step, one from pure noise and one to clean data are of first order.

    Args:
      eta: Share of the noise of the reverse diffusion: 0 is the probability flow ODE, 1
        is SDE-DPM-Solver++(2M), whose order is that of the distribution it draws from.
    """

    def init(latents):
        return {"x0": jnp.zeros_like(latents), "width": jnp.array(jnp.inf)}

    def step(predict, latents, state, now, next, noise):
        x0, _ = predict(latents, now)
        width = _width(now, next)
        change = _change(x0, state["x0"], state["width"], width)
        decay = jnp.exp(-eta * width) if eta else 1.0
        moved = next.sigma / now.sigma * decay * latents
        moved -= next.alpha * jnp.expm1(-(1 + eta) * width) * (x0 + change / 2)
        if eta:
            moved += next.sigma * safe_sqrt(-jnp.expm1(-2 * eta * width)) * noise
        return moved, _like(state, {"x0": x0, "width": width})

    return Sampler(init=init, step=step, order=2, stochastic=eta > 0)


def dpmpp_2m_sde(eta=1.0):
    """SDE-DPM-Solver++(2M), see `dpmpp_2m`."""
    return dpmpp_2m(eta)


def unipc():
    """UniPC-2 with B_2(h), in the prediction of clean latents (Zhao et al. 2023).

    Its predictor is DPM-Solver++(2M). The corrector comes one step later, when the
    network has seen the predicted latents, and costs no evaluation.
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
        x0, _ = predict(latents, now)
        # What is not as predicted is known and was held: it needs no correction.
        free = latents == state["latents"]
        latents = jnp.where(free, latents + _correction(x0, state, now), latents)
        width = _width(now, next)
        change = _change(x0, state["x0"], state["width"], width)
        moved = next.sigma / now.sigma * latents
        moved -= next.alpha * jnp.expm1(-width) * (x0 + change / 2)
        values = {
            "latents": moved,
            "x0": x0,
            "change": change,
            "before": state["width"],
            "width": width,
        }
        return moved, _like(state, values)

    return Sampler(init=init, step=step, order=3)


def _correction(x0, state, now):
    """What UniC-2 adds to the latents that the last step predicted (Algorithm 1)."""
    # Nothing was predicted before the first step, nothing improves on pure noise, and a
    # step that led nowhere needs no correction.
    correctable = jnp.isfinite(state["width"]) & (state["width"] > 0)
    width = jnp.where(correctable, state["width"], 1.0)
    before = state["before"]
    basis = -jnp.expm1(-width)
    # The weights that make it exact where x0 is a polynomial of log-SNR.
    first = (1 - basis / width) / basis
    second = (1 - 2 * (1 - basis / width) / width) / basis
    past = (first - second) / (1 + before / width)
    # A first step knows no past; the usual weight of its end is then 1/2.
    known = jnp.isfinite(before)
    past = jnp.where(known, past, 0.0)
    end = jnp.where(known, first - past, 0.5)
    change = state["change"]
    corrected = past * change + end * (x0 - state["x0"])
    correction = now.alpha * basis * (corrected - change / 2)
    return jnp.where(correctable, correction, 0.0)


def _width(now, next):
    """How far a step goes in log(alpha / sigma); infinite from or to an end."""
    here, there = (jnp.log(point.alpha) - jnp.log(point.sigma) for point in (now, next))
    return there - here


def _change(x0, last_x0, last_width, width):
    """How much x0 will change over a step if it goes on as over the last one.

    Zero where that is unknown, as after a step that led nowhere (a grid may repeat a
    level), or the step leads to clean data.
    """
    known = jnp.isfinite(width) & (last_width > 0)
    ratio = jnp.where(known, width / jnp.where(known, last_width, 1.0), 0.0)
    return ratio * (x0 - last_x0)


def _like(state, values):
    """Casts values to the types of the state that they replace."""
    return jax.tree.map(lambda new, old: new.astype(old.dtype), values, state)
