"""Keys of a config that change nothing, as another key does without them."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from ldm_jax.data.load_batch import LoaderOptions
from ldm_jax.diffusion.objective import Objective
from ldm_jax.diffusion.schedule import make_schedule
from ldm_jax.models.first_stages import DEFAULT_KIND
from ldm_jax.training.loss_options import LossOptions
from ldm_jax.training.optimizer import make_learning_rate


class _Idle(NamedTuple):
    """Keys that change nothing where another key has one of some values.

    Attributes:
      section: Section of the keys.
      keys: Their names in it.
      other: Dotted name of the other key.
      values: Its values that do without them.
      taker: What takes the keys: its defaults say whether they are set.
    """

    section: str
    keys: tuple[str, ...]
    other: str
    values: tuple[Any, ...]
    taker: Callable


def idle_keys(config: ConfigDict) -> dict[str, str]:
    """Lists the keys that change nothing, whatever they are set to.

    Args:
      config: ConfigDict of any stage.

    Returns:
      Dotted key -> why, as "schedule.kind=cosine does without it".
    """
    found = {}
    for row in _ROWS:
        value = _value(config, row.other)
        if value in row.values:
            keys = (f"{row.section}.{key}" for key in row.keys)
            found |= dict.fromkeys(keys, f"{row.other}={value} does without it")
    return found


def idle_notes(config: ConfigDict) -> list[str]:
    """Names keys that are set, to another value than the default, and change nothing.

    They are no errors: a config may come from one of another kind, and checkpoints
    record what they were trained with.

    Args:
      config: ConfigDict of any stage.

    Returns:
      A sentence for each key.
    """
    idle = idle_keys(config)
    notes = []
    for row in _ROWS:
        section, parameters = config.get(row.section, {}), _parameters(row.taker)
        for name in row.keys:
            key = f"{row.section}.{name}"
            is_set = name in section and section[name] != parameters[name].default
            if key in idle and is_set:
                notes.append(f"note: {key}={section[name]} has no effect: {idle[key]}")
    return notes


def _parameters(taker):
    return inspect.signature(taker).parameters


def _value(config, key):
    """The value of a dotted key; None where it is absent."""
    section, _, name = key.rpartition(".")
    usual = DEFAULT_KIND if key == "first_stage.kind" else None
    return config.get(section, {}).get(name, usual)


# A row of a table that is not named here is taken to use all that it is given.
_ROWS = (
    _Idle(
        "schedule",
        ("beta_start", "beta_end"),
        "schedule.kind",
        ("cosine", "rectified_flow"),
        make_schedule,
    ),
    _Idle(
        "schedule",
        ("cosine_s",),
        "schedule.kind",
        ("scaled_linear", "linear", "sqrt", "rectified_flow"),
        make_schedule,
    ),
    _Idle(
        "schedule",
        ("zero_terminal_snr",),
        "schedule.kind",
        ("rectified_flow",),
        make_schedule,
    ),
    _Idle(
        "loss",
        ("logit_mean", "logit_std"),
        "loss.timestep_sampling",
        ("uniform",),
        Objective,
    ),
    _Idle(
        "loss",
        ("codebook_weight", "codebook_beta", "codebook_legacy"),
        "first_stage.kind",
        ("kl",),
        LossOptions,
    ),
    _Idle("loss", ("kl_weight",), "first_stage.kind", ("vq",), LossOptions),
    _Idle(
        "train",
        ("decay_steps", "end_factor"),
        "train.decay",
        ("constant",),
        make_learning_rate,
    ),
    _Idle("train", ("start_factor",), "train.warmup_steps", (0,), make_learning_rate),
    # Images were cut when they were encoded.
    _Idle("data", ("crop", "min_crop"), "data.source", ("latents",), LoaderOptions),
)
