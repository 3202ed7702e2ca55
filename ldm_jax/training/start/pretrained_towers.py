"""Towers of conditioners with pretrained weights: loaded for a new run, and frozen."""

from collections.abc import Collection
from typing import Any

from flax.traverse_util import unflatten_dict

from ldm_jax.conditioners import Conditioner
from ldm_jax.errors import ConfigError, ConversionError
from ldm_jax.weights.towers import load_tower


def initial_weights(
    conditioner: Conditioner, without: Collection[str] = ()
) -> dict[str, Any]:
    """Loads the pretrained towers of a new run.

    Args:
      conditioner: Conditioner.
      without: Batch keys of towers that are not needed, as their states are stored.

    Returns:
      Nested dict of NumPy arrays, a part of the parameters {"conditioner": ...}.

    Raises:
      ConfigError: If a file cannot be used, or a tower would be frozen with random
        weights.
    """
    found = {}
    for key, tower in conditioner.towers().items():
        if key in without:
            continue
        if tower.weights:
            try:
                params = load_tower(tower.weights, tower.module)
            except ConversionError as error:
                raise ConfigError(f"conditions.{key}.weights: {error}") from error
            found["conditioner", *tower.path.split("/")] = params
        elif tower.frozen:
            raise ConfigError(
                f"conditions.{key} is frozen and would keep random weights: set "
                f"conditions.{key}.weights to a file that has them, train.init_from to "
                f"a run that has, or conditions.{key}.frozen=False to train it"
            )
    return unflatten_dict(found)


def frozen_paths(
    conditioner: Conditioner, without: Collection[str] = ()
) -> tuple[str, ...]:
    """Returns the paths of frozen towers.

    Args:
      conditioner: Conditioner.
      without: See `initial_weights`.

    Returns:
      Paths as in `train.freeze`.
    """
    return tuple(
        f"conditioner/{tower.path}"
        for key, tower in conditioner.towers().items()
        if tower.frozen and key not in without
    )
