"""Classifier-free guidance, with all predictions in one batched network evaluation."""

import dataclasses
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ldm_jax import ranges
from ldm_jax.annotations import Array, Float
from ldm_jax.diffusion.invariants import hoist_invariants
from ldm_jax.diffusion.schedule import NoiseSchedule, SchedulePoint

# A guidance scale, or one for each of several conditions: a dict of batch key -> scale,
# or its items as a tuple, which is hashable.
Scale = Any
# (latents, point) -> output of the network; point is scalar.
Network = Callable[[Array, SchedulePoint], Array]


@dataclasses.dataclass(frozen=True)
class GuidanceOptions:
    """Options of classifier-free guidance (Ho & Salimans 2022).

    Attributes:
      scale: Number, or dict of batch key -> number, see `plan`; a dict is stored as a
        tuple of pairs, so that the options are hashable. 1 is off and costs nothing.
      interval: (low, high), the part of the timestep range in which guidance is on, as
        fractions, 0 the least noise and 1 the most (Kynkäänniemi et al. 2024).
      rescale: Fraction in [0, 1] by which the standard deviation of each example is
        moved back to that without guidance (Lin et al. 2023, Sec. 3.4).

    Raises:
      ValueError: If the interval or `rescale` is out of range.
    """

    scale: Scale = 1.0
    interval: Sequence[float] = (0.0, 1.0)
    rescale: float = 0.0

    def __post_init__(self):
        if isinstance(self.scale, Mapping):
            object.__setattr__(self, "scale", tuple(self.scale.items()))
        object.__setattr__(self, "interval", tuple(self.interval))
        _check_interval(self.interval)
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"guidance_rescale must be in [0, 1], got {self.rescale}")
        if not any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(self.scale)):
            scale = ranges.SAMPLE["guidance_scale"]
            ranges.check_value(scale, self.scale, "guidance_scale")

    @property
    def acts(self) -> bool:
        """Whether any scale differs from 1."""
        pairs = isinstance(self.scale, tuple)
        scales = [scale for _, scale in self.scale] if pairs else [self.scale]
        return not all(_equal(scale, 1) for scale in scales)

    def at(self, fraction: float | Float[Array, ""]) -> "GuidanceOptions":
        """Returns options with weaker guidance.

        Args:
          fraction: 0 for no guidance, 1 for full guidance; with a traced scalar one
            program can do both.

        Returns:
          GuidanceOptions whose scales are interpolated between 1 and those of self.
        """

        def weaken(scale):
            return 1 + fraction * (scale - 1)

        if isinstance(self.scale, tuple):
            scale = tuple((key, weaken(value)) for key, value in self.scale)
        else:
            scale = weaken(self.scale)
        return dataclasses.replace(self, scale=scale)


def _check_interval(interval):
    if len(interval) != 2 or not 0 <= interval[0] <= interval[1] <= 1:
        raise ValueError(
            f"guidance_interval {tuple(interval)}: give (low, high), fractions of the "
            "noise range, 0 <= low <= high <= 1"
        )


def plan(scale: Scale, keys: Iterable[str]) -> tuple[list[set[str]], list]:
    """Plans the conditions of each network evaluation, and the scales between them.

    A single number s guides all conditions together, e() + s (e(all) - e()). A dict
    guides one after the other, in its order: e() + s_1 (e(1) - e()) + s_2 (e(1, 2) -
    e(1)) + ... (Brooks et al. 2023, Eq. 3); conditions that are not in the dict are
    part of every evaluation. Successive conditions with equal scales need no evaluation
    between them, and conditions that every evaluation has correspond to scale 1: so 1,
    or a dict of ones, is off.

    Args:
      scale: Guidance scale, or dict of batch key -> scale, or its items as a tuple;
        Python numbers, or traced scalars, which count as different from all others.
      keys: Batch keys of all conditions.

    Returns:
      (keys of each evaluation, scales): a list of sets, from the fewest conditions to
      all of them, and the scale of each step from one to the next.

    Raises:
      ValueError: If there is no condition to guide, or the dict has an unknown key.
    """
    if isinstance(scale, tuple):
        scale = dict(scale)
    steps = (
        {(key,): value for key, value in scale.items()}
        if isinstance(scale, Mapping)
        else {tuple(keys): scale}
    )
    guided = {key for step in steps for key in step}
    for key in sorted(guided - set(keys)):
        raise ValueError(
            f"guidance_scale is given for {key!r}, which is not a condition of this "
            f"model: it has {', '.join(map(repr, sorted(keys))) or 'none'}"
        )
    evaluations, scales, last = [set(keys) - guided], [], 1
    for step, value in steps.items():
        longer = evaluations[-1].union(step)
        if _equal(value, last):
            evaluations[-1] = longer
        else:
            evaluations.append(longer)
            scales.append(value)
        last = value
    if scales and not keys:
        raise ValueError(
            f"guidance_scale {scale} needs a model with conditions: set it to 1 for an "
            "unconditional one"
        )
    return evaluations, scales


def _equal(scale, other):
    """Whether two scales are known to be equal; never for traced scales."""
    known = all(isinstance(value, numbers.Real) for value in (scale, other))
    return known and scale == other


def plan_inputs(
    scale: Scale,
    conditioner: Any,
    inputs: Mapping[str, Any],
    negative: Mapping[str, Any] | None = None,
) -> tuple[list[dict[str, Any]], list]:
    """Plans evaluations like `plan`, with the inputs of each.

    Args:
      scale: See `plan`.
      conditioner: Conditioner of the model.
      inputs: Dict with its keys, arrays [B, ...].
      negative: Dict of inputs that replace the null inputs of some keys, for guidance
        to push away from; shaped like those of `inputs`.

    Returns:
      (list of inputs like `inputs`, scales).

    Raises:
      ValueError: As in `plan`, or if `negative` has an unknown or unguided key, or a
        wrong shape.
    """
    keys, negative = set(conditioner.entries), negative or {}
    evaluations, scales = plan(scale, keys)
    always = evaluations[0]
    for key, values in negative.items():
        if key not in keys or values.shape != inputs[key].shape:
            raise ValueError(
                f"negative inputs {key!r} of shape {values.shape}: give them for a "
                f"condition ({', '.join(sorted(keys))}) and in the shape of its inputs"
            )
        if key in always:
            raise ValueError(
                f"negative inputs for {key!r} need guidance that pushes away from "
                f"them: give {key!r} a guidance_scale other than 1"
            )
    dropped = keys - always
    null = conditioner.null_inputs(inputs, dropped - negative.keys()) | negative
    return [
        inputs | {key: null[key] for key in keys - present} for present in evaluations
    ], scales


def timestep_interval(
    schedule: NoiseSchedule, interval: Sequence[float]
) -> tuple[float, float] | None:
    """Converts fractions of the noise range to timesteps.

    Args:
      schedule: NoiseSchedule.
      interval: (low, high), 0 <= low <= high <= 1; 0 is the least noise.

    Returns:
      (low, high) in timesteps; None for all of them.

    Raises:
      ValueError: If `interval` is invalid.
    """
    _check_interval(interval)
    low, high = interval
    if (low, high) == (0, 1):
        return None
    last = schedule.num_train_timesteps - 1
    return low * last, high * last


def interleave(trees: Sequence[Any]) -> Any:
    """Interleaves pytrees along the batch axis: 0, 0', 1, 1', ...

    Unlike with concatenation, the rows of a sharded batch stay on their devices.

    Args:
      trees: Pytrees of the same structure and shapes, arrays [B, ...].

    Returns:
      The same pytree with arrays [len(trees) B, ...].
    """

    def join(*arrays):
        size, *shape = arrays[0].shape
        return jnp.stack(arrays, axis=1).reshape(len(arrays) * size, *shape)

    return jax.tree.map(join, *trees)


def guide(
    network: Callable[[Any], Network],
    conditionings: Sequence[Any],
    scales: Sequence[Any],
    interval: Sequence[float] | None = None,
    rescale: float = 0.0,
) -> Network:
    """Makes a guided network, which extrapolates from outputs with fewer conditions.

    Ho & Salimans 2022, Eq. 6 in the convention null + scale (conditional - null), where
    scale 1 is the conditional model. x0, noise and any other parametrisation are affine
    functions of each other at given latents, so guidance of any of them is equivalent.

    Args:
      network: Conditioning of a batch -> ((latents, point) -> output [B, h, w, c]).
      conditionings: Conditionings of the evaluations that `plan` lists, pytrees of
        arrays [B, ...]; the last one has all conditions.
      scales: Scale of each step from one conditioning to the next; empty for no
        guidance.
      interval: (lowest, highest) timestep with guidance, both included (Kynkäänniemi et
        al. 2024); elsewhere the network has all conditions and is not guided. None for
        all timesteps.
      rescale: Fraction in [0, 1] by which each example's standard deviation is moved
        back to the unguided one (Lin et al. 2023, Sec. 3.4).

    Returns:
      (latents, point) -> output [B, h, w, c]; point is scalar.
    """
    plain = network(conditionings[-1])
    if not scales:
        return plain
    count, together = len(conditionings), network(interleave(conditionings))

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
        # Outside of the interval one evaluation is enough, instead of `count`.
        inside = (low <= point.timestep) & (point.timestep <= high)
        given = latents, point
        branches = (hoist_invariants(branch, *given) for branch in (guided, plain))
        return jax.lax.cond(inside, *branches, *given)

    return sometimes


def _rescale(
    output: Float[Array, " batch *shape"],
    unguided: Float[Array, " batch *shape"],
    fraction: float,
) -> Float[Array, " batch *shape"]:
    ratio = _std(unguided) / jnp.maximum(_std(output), 1e-8)
    return output * (1 + fraction * (ratio - 1))


def _std(x):
    """Standard deviation of each example, [B, 1, 1, 1]."""
    return jnp.std(x, axis=tuple(range(1, x.ndim)), keepdims=True)
