"""Text states that were stored once, in place of a frozen tower in a run."""

from typing import Any

from ml_collections import ConfigDict

from ldm_jax.conditioners import Conditioner
from ldm_jax.errors import ConfigError
from ldm_jax.trained import load_text_towers


def stored_text_states(
    config: ConfigDict, conditioner: Conditioner, data: Any
) -> dict[str, int]:
    """Finds the conditions whose towers the run does without, and checks their towers.

    A tower is read to compare its checksum, and goes again.

    Args:
      config: ConfigDict.
      conditioner: Conditioner of the model.
      data: The run's `Data`.

    Returns:
      Batch key -> checksum of the tower that made the states; empty where batches hold
      token ids.

    Raises:
      ConfigError: If the states are of another tower than that of the config, or of one
        that is to be trained.
    """
    keys = sorted(conditioner.entries.keys() & data.null_states.keys())
    if not keys:
        return {}
    if config.train.init_from:
        raise ConfigError(
            "data.text_states=True does not go with train.init_from, which has text "
            "towers of its own: set it to False to train on the token ids"
        )
    towers, found = load_text_towers(config), {}
    for key in keys:
        theirs = data.header.text_states[key]["checksum"]
        if key not in towers:
            raise ConfigError(
                f"data.text_states=True, but conditions.{key} has no frozen tower of "
                f"given weights: set conditions.{key}.frozen=True and "
                f"conditions.{key}.weights, or data.text_states=False"
            )
        if towers[key].checksum != theirs:
            raise ConfigError(
                f"conditions.{key}.weights={config.conditions[key].weights} is another "
                f"text tower than that which made the states of {config.data.name} "
                f"(checksum {towers[key].checksum}, not {theirs}): give that one, or "
                "encode the data anew"
            )
        found[key] = theirs
    return found
