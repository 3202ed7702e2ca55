"""Options of a run: the flags' over the config's, checked before anything runs."""

import math

from ldm_jax.build import sample_options
from ldm_jax.diffusion import grids, samplers
from ldm_jax.errors import ConfigError


def complete(trained, given, invert=False):
    """Completes the options from the config.

    Args:
      trained: A Trained.
      given: Option of `generate.sample_images` -> value; None takes the config's.
        "tile" is in pixels, as all sizes that a user gives.
      invert: Whether sampling starts from inverted noise, which noise of the sampler's
        own would cover; it takes no `eta` from the config then.

    Returns:
      Dict of the options of `generate.sample_images`.

    Raises:
      ConfigError: If the sampler or its noise levels cannot be.
    """
    options = sample_options(trained.config, trained.model)
    if given.get("sampler") not in (None, options.get("sampler")):
        # Another sampler does not inherit the options of the config's.
        options["eta"] = None
    if invert:
        options["eta"] = None
    options |= {key: value for key, value in given.items() if value is not None}
    grid = ("num_steps", "spacing", "final_level", "shift")
    try:
        sampler = samplers.make_sampler(options["sampler"], eta=options.get("eta"))
        grids.make_points(
            trained.model.schedule,
            **{key: options[key] for key in grid if key in options},
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if invert and sampler.stochastic:
        raise ConfigError(
            f"--invert: {options['sampler']} would cover the noise that was found "
            "by noise of its own: use --sampler=ddim, without --eta"
        )
    _check_guidance(trained, options["guidance_scale"])
    if options.get("tile") is not None:
        options["tile"] = _tile_in_latents(trained.model, options["tile"])
    return options


def _tile_in_latents(model, tile):
    factor = model.first_stage.downsampling_factor
    unit = factor * model.backbone.size_multiple
    if tile < 1 or tile % unit:
        nearest = max(unit, round(tile / unit) * unit)
        raise ConfigError(
            f"--tile={tile} is no multiple of {unit}, which the first stage and the "
            f"U-Net divide by: use --tile={nearest}"
        )
    return tile // factor


def _check_guidance(trained, scale):
    """Names the flag where the model has no condition, or knows none that is empty."""
    entries = trained.model.conditioner.entries
    scales = scale if isinstance(scale, dict) else dict.fromkeys(entries or [""], scale)
    for key, value in scales.items():
        if value == 1:
            continue
        if entries and key not in entries:
            raise ConfigError(
                f"--guidance_scale: this model has no condition '{key}'; it has "
                f"{', '.join(sorted(entries))}"
            )
        if not entries or not entries[key].get("null_class", True):
            raise ConfigError(
                f"--guidance_scale={value:g} needs a model that knows what no "
                f"condition is; this one has none{key and f' for {key}'}: use "
                "--guidance_scale=1"
            )


def parse_scale(text):
    """Reads a guidance scale.

    Args:
      text: A number, `caption=5,depth=1.5`, or None.

    Returns:
      float, dict of batch key -> float in the order given, or None.

    Raises:
      ConfigError: If it is neither.
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


def parse_interval(text):
    """Reads `--guidance_interval`: two shares such as `0.2,0.8`; None for None.

    Raises:
      ConfigError: If it is no interval in [0, 1].
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


def parse_pair(text):
    """Reads `--interpolate`: the samples at the ends, such as `0,7`; None for None.

    Raises:
      ConfigError: If it is no pair of numbers.
    """
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise ConfigError(
            f"--interpolate={text}: give the numbers of the two samples at the ends, "
            "as 0,7"
        )
    return int(parts[0]), int(parts[1])


def _number(text):
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
