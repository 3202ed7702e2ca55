"""Classifier-free guidance: several predictions of one batched network evaluation."""

import numbers
from collections.abc import Mapping

import jax
import jax.numpy as jnp


def plan(scale, keys):
    """Which conditions each evaluation of the network is told, and the scales between.

    One number s guides all conditions together, e() + s (e(all) - e()). A dict guides
    one after the other, in its order: e() + s_1 (e(1) - e()) + s_2 (e(1, 2) - e(1)) +
    ... (Brooks et al. 2023, Eq. 3), where every evaluation is told the conditions that
    the dict leaves out. Neighbours of one scale need no evaluation between them, and 1
    is the scale of what is told anyway: a 1, or a dict of ones, is off.

    Args:
      scale: Guidance scale, or dict of batch key -> scale; Python numbers or traced
        scalars, which count as different from all others.
      keys: Batch keys of all conditions.

    Returns:
      (told, scales): a list of sets of keys, from what is told least to all keys, and
      the scale of each step between them, one less.

    Raises:
      ValueError: If there is no condition to guide, or the dict has another key.
    """
    steps = (
        {(key,): value for key, value in scale.items()}
        if isinstance(scale, Mapping)
        else {tuple(keys): scale}
    )
    guided = {key for step in steps for key in step}
    for key in sorted(guided - set(keys)):
        raise ValueError(
            f"guidance_scale is given for {key!r}, which is no condition of this "
            f"model: it has {', '.join(map(repr, sorted(keys))) or 'none'}"
        )
    told, scales, last = [set(keys) - guided], [], 1
    for step, value in steps.items():
        known = told[-1].union(step)
        if _equal(value, last):
            told[-1] = known
        else:
            told.append(known)
            scales.append(value)
        last = value
    if scales and not keys:
        raise ValueError(
            f"guidance_scale {scale} needs a model with conditions: set it to 1 for an "
            "unconditional one"
        )
    return told, scales


def _equal(scale, other):
    """Whether two scales are one for sure; of a traced scale nothing is known."""
    known = all(isinstance(value, numbers.Real) for value in (scale, other))
    return known and scale == other


def plan_inputs(scale, conditioner, inputs, negative=None):
    """As `plan`, with the inputs of each evaluation.

    Args:
      scale: See `plan`.
      conditioner: Conditioner of the model.
      inputs: Dict with its keys, arrays [B, ...].
      negative: Dict of inputs that some keys are told in place of nothing, for guidance
        to push away from; shaped like those of `inputs`.

    Returns:
      (list of inputs like `inputs`, scales).

    Raises:
      ValueError: Also if `negative` does not go with the rest.
    """
    keys, negative = set(conditioner.entries), negative or {}
    told, scales = plan(scale, keys)
    for key, values in negative.items():
        if key not in keys or values.shape != inputs[key].shape:
            raise ValueError(
                f"negative inputs {key!r} of shape {values.shape}: give them for a "
                f"condition ({', '.join(sorted(keys))}) and in the shape of its inputs"
            )
        if key in told[0]:
            raise ValueError(
                f"negative inputs for {key!r} need guidance that pushes away from "
                f"them: give {key!r} a guidance_scale other than 1"
            )
    unknown = keys - told[0]
    nothing = conditioner.null_inputs(inputs, unknown - negative.keys()) | negative
    return [
        inputs | {key: nothing[key] for key in keys - known} for known in told
    ], scales


def timestep_interval(schedule, interval):
    """Turns shares of the noise range into timesteps.

    Args:
      schedule: NoiseSchedule.
      interval: (low, high), 0 <= low <= high <= 1; 0 is the least noise.

    Returns:
      (low, high) in timesteps; None for all of them.

    Raises:
      ValueError: If that is no interval.
    """
    low, high = interval
    if not 0 <= low <= high <= 1:
        raise ValueError(
            f"guidance_interval {tuple(interval)}: give (low, high) shares of the "
            "noise range, 0 <= low <= high <= 1"
        )
    if (low, high) == (0, 1):
        return None
    last = schedule.num_train_timesteps - 1
    return low * last, high * last


def interleave(trees):
    """Lays pytrees side by side on the batch axis: 0, 0', 1, 1', ...

    Not one behind the other, so that a sharded batch stays on its devices.

    Args:
      trees: Pytrees of the same structure and shapes, arrays [B, ...].

    Returns:
      The same pytree with arrays [len(trees) B, ...].
    """

    def join(*arrays):
        size, *shape = arrays[0].shape
        return jnp.stack(arrays, axis=1).reshape(len(arrays) * size, *shape)

    return jax.tree.map(join, *trees)


def guide(network, told, scales, interval=None, rescale=0.0):
    """Makes a network that extrapolates from what it says when it is told less.

    Ho & Salimans 2022, Eq. 6 in the convention null + scale (given - null), where scale
    1 is the conditional model. x0, noise and any other parametrisation are affine in
    each other at given latents, so it does not matter which one is guided.

    Args:
      network: Conditioning of a batch -> ((latents, point) -> output [B, h, w, c]).
      told: Conditionings as planned by `plan`, arrays [B, ...]; the last one is whole.
      scales: Scale of each step between them; empty for no guidance.
      interval: (lowest, highest) timestep at which guidance acts, both included
        (Kynkäänniemi et al. 2024); elsewhere the network is told all and not guided.
        None for everywhere.
      rescale: Share in [0, 1] by which each example's standard deviation is brought
        back to the unguided one (Lin et al. 2023, Sec. 3.4).

    Returns:
      (latents, point) -> output [B, h, w, c]; point is scalar.

    Raises:
      ValueError: If `rescale` is no share.
    """
    if not 0 <= rescale <= 1:
        raise ValueError(f"guidance_rescale must be in [0, 1], got {rescale}")
    plain = network(told[-1])
    if not scales:
        return plain
    count, together = len(told), network(interleave(told))

    def guided(latents, point):
        outputs = together(interleave([latents] * count), point)
        outputs = outputs.reshape(-1, count, *outputs.shape[1:])
        outputs = [outputs[:, index] for index in range(count)]
        result = outputs[0]
        for index, scale in enumerate(scales):
            result += scale * (outputs[index + 1] - outputs[index])
        return _rescale(result, outputs[-1], rescale) if rescale else result

    if interval is None:
        return guided
    low, high = interval

    def sometimes(latents, point):
        # Outside of the interval, one evaluation instead of `count`.
        inside = (low <= point.timestep) & (point.timestep <= high)
        return jax.lax.cond(inside, guided, plain, latents, point)

    return sometimes


def _rescale(output, given, share):
    ratio = _std(given) / jnp.maximum(_std(output), 1e-8)
    return output * (1 + share * (ratio - 1))


def _std(x):
    """Standard deviation of each example, [B, 1, 1, 1]."""
    return jnp.std(x, axis=tuple(range(1, x.ndim)), keepdims=True)
