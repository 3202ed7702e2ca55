"""States of frozen text towers for token ids, to be stored with them."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ldm_jax import sharding
from ldm_jax.data.encoded.header import EMPTY
from ldm_jax.data.encoded.record import STATES
from ldm_jax.data.inputs import Input
from ldm_jax.errors import ConfigError
from ldm_jax.files import replacing
from ldm_jax.store import Place
from ldm_jax.trained import TextTower


def require_captions(
    towers: Mapping[str, TextTower], inputs: Mapping[str, Input]
) -> None:
    """Checks that there are towers, each for an input that makes captions.

    Args:
      towers: Batch key -> TextTower.
      inputs: Batch key -> Input.

    Raises:
      ConfigError: If there are none, or the input of one is not a caption.
    """
    if not towers:
        raise ConfigError(
            "--text_states: no condition of the config has a frozen text tower: give "
            "conditions.KEY kind='clip_text', or frozen=True, and the file of its "
            "weights; or leave the flag out"
        )
    for key in towers:
        if not hasattr(inputs.get(key), "tokenizer"):
            raise ConfigError(
                f"--text_states: data.inputs.{key} makes no captions, which the tower "
                f"of conditions.{key} takes: set its kind to 'caption'"
            )


def make_states(
    towers: Mapping[str, TextTower], mesh: Mesh, dtype: str
) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Makes the jitted function that encodes the captions of a batch.

    Args:
      towers: Batch key -> TextTower.
      mesh: Mesh over the devices of this process.
      dtype: Type of its results.

    Returns:
      Function of a batch with token ids int [B, L] on the host -> dict of the names of
      the states -> [B, L, D] on the devices.
    """
    split = sharding.batch_sharding(mesh)

    def of(tower):
        """Function of one tower: token ids int [B, L] -> states [B, L, D]."""
        whole = sharding.tree_shardings(tower.params, mesh)
        params, module = sharding.put_tree(tower.params, whole), tower.module

        def encode(params, ids):
            states = module.apply({"params": params}, ids)
            return states.astype(jnp.dtype(dtype))

        encode = sharding.jit(encode, mesh, out_shardings=split)
        return lambda ids: encode(params, ids)

    made = {key: of(tower) for key, tower in towers.items()}

    def states(batch):
        ids = sharding.put_batch({key: batch[key] for key in made}, mesh)
        return {STATES.format(key): make(ids[key]) for key, make in made.items()}

    return states


def write_empty(
    folder: Place,
    towers: Mapping[str, TextTower],
    inputs: Mapping[str, Input],
    dtype: str,
) -> None:
    """Writes the towers' states of the null input, and of the empty caption.

    Args:
      folder: Folder of the set.
      towers: Batch key -> TextTower.
      inputs: Batch key -> Input.
      dtype: Type of the states.

    Raises:
      DiskError: If it cannot be written.
    """
    found = {}
    for key, tower in towers.items():
        ids = np.asarray(inputs[key].tokenizer([""]), np.int32)
        both = np.concatenate([np.asarray(tower.module.null(jnp.asarray(ids))), ids])
        null, empty = _as_stored(tower, both, dtype)
        found |= {f"{key}/null": null, f"{key}/empty": empty}
    with replacing(folder / EMPTY) as temporary, open(temporary, "wb") as file:
        np.savez(file, **found)


def _as_stored(tower, ids, dtype):
    """States rounded as in the records, in float32, as npz has no bfloat16."""
    states = sharding.jit(tower.module.apply)({"params": tower.params}, ids)
    return np.asarray(states.astype(jnp.dtype(dtype)).astype(jnp.float32))
