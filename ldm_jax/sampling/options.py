"""Options of a run: flags override the config, and are checked before anything runs."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from ldm_jax import ranges
from ldm_jax.build import check_sampling, sample_options
from ldm_jax.console import warn_once
from ldm_jax.diffusion import samplers
from ldm_jax.diffusion.sample_options import SampleOptions, from_flat, to_flat
from ldm_jax.errors import ConfigError
from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.trained import Trained

_ENDS = ranges.several(ranges.whole(0, 2**31 - 1), 2, 2)._replace(
    what="(first, last), the numbers of two samples from 0"
)
_SIZE = ranges.several(ranges.whole(0, none="as in training"), 2, 2)._replace(
    what="(height, width) in pixels"
)


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Options of a run besides those of sampling (SampleOptions).

    Attributes:
      num_samples: Number of samples in the folder when the run is complete; None is 16,
        or one for each value of a flag if that is more.
      seed: Seed of the run.
      batch_size: Samples at a time over all devices of a process; rounded up to a
        multiple of their number.
      output: How samples are written, a row of `sample_files.OUTPUTS`.
      shard_size: Samples per shard, for outputs with several samples in a file.
      npz: Whether to also write `samples.npz`: arr_0 [N, H, W, C], and the conditions;
        see `array.write_array`.
      from_data: Whether conditions without a flag come from held-out examples; sample k
        uses example k.
      invert: Whether to start from the noise found by DDIM inversion of the given
        images.
      interpolate: (first, last): interpolates from the noise of sample `first` to that
        of sample `last`; all samples have the conditions of sample `first`.
      show_unguided: Whether the contact sheet also shows its samples without
        classifier-free guidance, drawn from the same noise.
      classifier_scale: Scale of classifier guidance; None for the default.
      guide_scale: Scale of image guidance; None for the default.
      take_outdir: Take the folder from a command on another host, see `lock.hold`.

    Raises:
      ConfigError: If a number is out of its range, see `ranges.FLAGS`.
    """

    num_samples: int | None = None
    seed: int = 0
    batch_size: int = 16
    output: str = "png"
    shard_size: int = 1024
    npz: bool = False
    from_data: bool = False
    invert: bool = False
    interpolate: tuple[int, int] | None = None
    show_unguided: bool = False
    classifier_scale: float | None = None
    guide_scale: float | None = None
    take_outdir: bool = False

    def __post_init__(self):
        for field in dataclasses.fields(self):
            check, value = ranges.FLAGS.get(field.name), getattr(self, field.name)
            if check is not None and value is not None:
                ranges.check_value(check, value, field.name)
        if self.interpolate is not None:
            ranges.check_value(_ENDS, self.interpolate, "interpolate")


def check_given(given: Mapping[str, Any]) -> None:
    """Checks options as far as possible without a model.

    Args:
      given: As in `complete`.

    Raises:
      ConfigError: If a choice is unknown or a number out of its range.
    """
    given = {name: value for name, value in given.items() if value is not None}
    if "sampler" not in given:
        # Whether eta is valid depends on the sampler in the config.
        given.pop("eta", None)
    try:
        from_flat(given)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error


def complete(
    trained: Trained,
    given: Mapping[str, Any] | None = None,
    size: Any = (None, None),
    invert: bool = False,
) -> SampleOptions:
    """Fills in unset options from the config, and checks all.

    Args:
      trained: A Trained.
      given: Names of options as in the config section `sample` -> values; None uses
        the config's.
      size: (height, width) in pixels; None is the size of training.
      invert: Whether sampling starts from inverted noise; then `eta` of the config is
        ignored, as noise that the sampler adds would cover the inverted noise.

    Returns:
      The options.

    Raises:
      ConfigError: See `check`; also on an unknown name.
    """
    ranges.check_value(_SIZE, size, "size")
    options = sample_options(trained.config, trained.model, given, tuple(size))
    if invert and (given or {}).get("eta") is None:
        options = dataclasses.replace(options, eta=None)
    _check_run(trained, options, invert)
    _warn_of_idle(options, given or {})
    return options


def _warn_of_idle(options, given):
    """Warns of given options that have no effect on the samples."""
    idle = {}
    if not options.guidance.acts:
        reason = "these samples are not guided: --guidance_scale=1 is off"
        idle |= dict.fromkeys(("guidance_interval", "guidance_rescale"), reason)
    if not samplers.make_sampler(options.sampler, eta=options.eta).stochastic:
        reason = f"{options.sampler} draws no noise, as ddpm does"
        idle["temperature"] = reason
    usual, chosen = to_flat(SampleOptions()), to_flat(options)
    for name, reason in idle.items():
        if given.get(name) is not None and chosen[name] != usual[name]:
            warn_once(f"--{name}={given[name]} has no effect: {reason}")


def check(trained: Trained, options: SampleOptions, invert: bool = False) -> None:
    """Checks options against the model.

    Args:
      trained: A Trained.
      options: The options.
      invert: Whether sampling starts from inverted noise.

    Raises:
      ConfigError: If the sampler, its noise levels, guidance or tiles are not possible.
    """
    model = trained.model
    check_sampling(options, model.schedule, model.conditioner.entries)
    _check_run(trained, options, invert)


def _check_run(trained, options, invert):
    """Checks what only runs require of options."""
    if not isinstance(options.sampler, str):
        raise ConfigError("a run records its sampler: name a row of SAMPLERS")
    sampler = samplers.make_sampler(options.sampler, eta=options.eta)
    if invert and sampler.stochastic:
        raise ConfigError(
            f"--invert: {options.sampler} would cover the noise that was found "
            "by noise of its own: use --sampler=ddim, without --eta"
        )
    if options.tile is not None:
        _check_tile(trained.model, options.tile)


def _check_tile(model, tile):
    factor = model.first_stage.downsampling_factor
    unit = factor * model.backbone.size_multiple
    if tile < 1 or tile % unit:
        nearest = max(unit, round(tile / unit) * unit)
        raise ConfigError(
            f"--tile={tile} is not a multiple of {unit}, which the first stage and the "
            f"backbone divide by: use --tile={nearest}"
        )


# Options that are always recorded; others only if they are not the default.
_RECORDED = (
    *("sampler", "num_steps", "guidance_scale", "eta", "spacing", "final_level"),
    "shift",
)


def record_of(options: SampleOptions, model: LatentDiffusion) -> dict[str, Any]:
    """Lists options for `settings.json`, in the form that older versions wrote.

    Args:
      options: The options.
      model: LatentDiffusion.

    Returns:
      Dict of names as in the config section `sample` -> values; the tile in latents,
      several guidance scales as pairs, whose order matters.
    """
    usual = to_flat(SampleOptions())
    record = {
        name: value
        for name, value in to_flat(options).items()
        if name in _RECORDED or value != usual[name]
    }
    if options.tile is not None:
        record["tile"] = options.tile // model.first_stage.downsampling_factor
    return record


def parse_scale(text: str | None) -> float | dict[str, float] | None:
    """Parses a guidance scale.

    Args:
      text: A number, `caption=5,depth=1.5`, or None.

    Returns:
      float, dict of batch key -> float in the order given, or None.

    Raises:
      ConfigError: If it is something else.
    """
    if text is None:
        return None
    parts = [part.partition("=") for part in text.split(",")]
    numbers = [_number(value if mark else key) for key, mark, value in parts]
    keys = [key.strip() for key, mark, _ in parts if mark]
    if None in numbers or len(set(keys)) not in (0, len(parts)):
        raise ConfigError(
            f"--guidance_scale={text}: give a number, or one per condition as "
            "caption=5,depth=1.5"
        )
    if keys:
        return dict(zip(keys, numbers, strict=True))
    if len(numbers) > 1:
        raise ConfigError(
            f"--guidance_scale={text}: of several say which condition each is for, "
            "as caption=5,depth=1.5"
        )
    return numbers[0]


def parse_interval(text: str | None) -> tuple[float, float] | None:
    """Parses `--guidance_interval`.

    Args:
      text: Two fractions such as `0.2,0.8`, or None.

    Returns:
      (low, high), or None.

    Raises:
      ConfigError: If it is not an interval in [0, 1].
    """
    if text is None:
        return None
    numbers = [_number(part) for part in text.split(",")]
    if len(numbers) != 2 or None in numbers or not 0 <= numbers[0] <= numbers[1] <= 1:
        raise ConfigError(
            f"--guidance_interval={text}: give the least and the most noise at which "
            "guidance acts, as 0.2,0.8; 0 is none and 1 is all"
        )
    return tuple(numbers)


def parse_pair(text: str | None) -> tuple[int, int] | None:
    """Parses `--interpolate`.

    Args:
      text: The samples at the ends, such as `0,7`, or None.

    Returns:
      (first, last), or None.

    Raises:
      ConfigError: If it is not a pair of numbers.
    """
    if text is None:
        return None
    parts = text.split(",")
    numbers = tuple(ranges.read_whole(part.strip(), 0, 2**31 - 1) for part in parts)
    if len(numbers) != 2 or None in numbers:
        raise ConfigError(
            f"--interpolate={text}: give the numbers of the two samples at the ends, "
            "as 0,7"
        )
    return numbers


def _number(text):
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
