"""The section `eval` of a config."""

import dataclasses
from collections.abc import Mapping

from ml_collections import ConfigDict

from ldm_jax import ranges
from ldm_jax.config import build, check_names, choose, suggest, to_dict
from ldm_jax.errors import ConfigError
from ldm_jax.eval_samples import LABEL_MODES
from ldm_jax.metrics.set_metrics import SET_METRICS


@dataclasses.dataclass(frozen=True)
class EvalOptions:
    """The section `eval`: which metrics of sets a run measures, and when; optional.

    Attributes:
      every: Steps between measurements; None or 0 for none.
      num_samples: Number of samples; for a first stage of reconstructions.
      batch_size: Number of images per batch, over all devices.
      distances: Metrics of sets, rows of SET_METRICS; for a first stage the default is
        ("rfid",).
      weights: Name of a feature network -> its file of weights; None for random ones.
      reference: File of reference statistics; "" to compute them from the run's own
        images.
      reference_images: Number of own images for them; None for all.
      label_mode: Row of LABEL_MODES.
      best: The result, such as "fid", by which the best checkpoint is kept; None to
        keep none.
      levels: Bins of the loss by noise level in each evaluation; 0 for none. None for
        10, or the number of noise levels if that is smaller.
    """

    every: int | None = None
    num_samples: int = 5000
    batch_size: int = 64
    distances: tuple[str, ...] = ("fid",)
    weights: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    reference: str = ""
    reference_images: int | None = None
    label_mode: str = "random"
    best: str | None = None
    levels: int | None = None


def eval_options(config: ConfigDict) -> EvalOptions:
    """Reads the section `eval`, with defaults for missing keys.

    Args:
      config: ConfigDict of any stage.

    Returns:
      EvalOptions.

    Raises:
      ConfigError: If a key or value is unknown or out of its range.
    """
    section = to_dict(config.get("eval") or {})
    is_first = config.stage == "autoencoder"
    if is_first:
        section = {"distances": ("rfid",)} | section
    weights = section.get("weights") or {}
    check_names(weights, ranges.SECTIONS["eval.weights"], "eval.weights")
    ranges.check_section(weights, "eval.weights")
    options = build(EvalOptions, section | {"weights": weights}, "eval")
    for name in options.distances:
        row = choose(SET_METRICS, name, "eval.distances")
        if row.needs_captions:
            raise ConfigError(
                f"eval.distances: {name} compares images with their captions, which "
                "training does not keep: measure it with ldm-evaluate"
            )
        if name == "rfid" and not is_first:
            raise ConfigError(
                "eval.distances: rfid is of a first stage's reconstructions: measure "
                "samples by fid"
            )
    choose(LABEL_MODES, options.label_mode, "eval.label_mode")
    if options.best is not None:
        better_of(options)
        if not options.every:
            raise ConfigError(
                f'eval.best="{options.best}" chooses among the steps that are measured '
                "every eval.every steps, and that is not set: set it, or leave "
                "eval.best out"
            )
    return options


def better_of(options: EvalOptions) -> str:
    """Returns whether lower or higher values of `eval.best` are better.

    Args:
      options: EvalOptions with `best`.

    Returns:
      "lower" or "higher".

    Raises:
      ConfigError: If no metric gives that result.
    """
    values = {}
    for name in options.distances:
        values |= SET_METRICS[name].values
    if options.best not in values:
        raise ConfigError(
            f'eval.best="{options.best}" is no result of eval.distances='
            f"{','.join(options.distances)}; {suggest(options.best, values)}"
        )
    return values[options.best].better
