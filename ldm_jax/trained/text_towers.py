"""Frozen text towers by the files that a config names: runs on stored states have none.

Such a run neither holds nor computes the tower of its captions. What samples from it
reads the tower from `conditions.KEY.weights`, and compares its checksum.
"""

import types
from collections.abc import Mapping
from typing import Any, NamedTuple

from flax.traverse_util import unflatten_dict
from ml_collections import ConfigDict

from ldm_jax.build import fill_conditions
from ldm_jax.checkpoint import tree_checksum
from ldm_jax.conditioners import CONDITIONERS, Conditioner, Text, make_conditioner
from ldm_jax.errors import CheckpointError, ConfigError, ConversionError
from ldm_jax.weights.towers import load_tower


class TextTower(NamedTuple):
    """A frozen text tower with its weights.

    Attributes:
      module: Conditioner that it is.
      params: Its parameters, NumPy.
      checksum: Of the parameters.
    """

    module: Text
    params: dict[str, Any]
    checksum: int


def load_text_towers(config: ConfigDict) -> dict[str, TextTower]:
    """Loads the frozen text towers that a config names.

    Args:
      config: ConfigDict of a second stage.

    Returns:
      Batch key -> TextTower; those of which the config names no weights are left out.

    Raises:
      ConfigError: If a file cannot be used.
    """
    entries = {
        key: entry
        for key, entry in config.conditions.items()
        if issubclass(CONDITIONERS.get(entry.get("kind"), object), Text)
    }
    captions = types.SimpleNamespace(conditions=entries, data=config.data)
    conditioner = make_conditioner(fill_conditions(captions, None, None))
    found = {}
    for key, tower in conditioner.towers().items():
        if not tower.frozen or not tower.weights:
            continue
        try:
            params = load_tower(tower.weights, tower.module)
        except ConversionError as error:
            raise ConfigError(f"conditions.{key}.weights: {error}") from error
        found[key] = TextTower(tower.module, params, int(tree_checksum(params)))
    return found


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


def with_text_towers(
    params: Mapping[str, Any], config: ConfigDict, meta: Mapping[str, Any]
) -> dict[str, Any]:
    """Adds the towers that a run on stored text states was trained without.

    Args:
      params: Weights of a second stage.
      config: Its ConfigDict.
      meta: What its checkpoint records.

    Returns:
      The weights with those of the towers; as they are for other runs.

    Raises:
      CheckpointError: If a tower is not there, or is another one.
    """
    recorded = meta.get("text_states")
    if not recorded:
        return dict(params)
    towers, conditioner = load_text_towers(config), dict(params["conditioner"])
    for key, checksum in recorded.items():
        where = f"conditions.{key}.weights={config.conditions[key].get('weights')}"
        if key not in towers or towers[key].checksum != checksum:
            raise CheckpointError(
                f"{where} is not the text tower whose states the run was trained on: "
                "bring that file back"
            )
        conditioner |= unflatten_dict({(key,): towers[key].params})
    return dict(params) | {"conditioner": conditioner}
