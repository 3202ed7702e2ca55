"""Frozen parts of a model, which a run does not change.

`train.freeze` lists their paths: "autoencoder/encoder" is every parameter below it. For
a first stage "latents" means all parameters that determine its latents (see
FIRST_STAGES). No gradients are computed for frozen parts, nor for anything before the
first trained part, and optimisers have no state for them.
"""

from collections.abc import Sequence
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from ldm_jax.build import make_first_stage
from ldm_jax.config import suggest
from ldm_jax.errors import ConfigError
from ldm_jax.models.first_stages import latent_parts_of
from ldm_jax.sharding import path_name


def freeze_paths(config: ConfigDict) -> tuple[str, ...]:
    """Reads `train.freeze`, with "latents" replaced by paths.

    Args:
      config: ConfigDict with `stage`, `first_stage` and `train`.

    Returns:
      Tuple of paths.
    """
    freeze = tuple(config.train.get("freeze", ()))
    if config.stage != "autoencoder" or "latents" not in freeze:
        return freeze
    parts = latent_parts_of(make_first_stage(config.first_stage))
    paths = [f"autoencoder/{part}" for part in parts]
    return (*paths, *(path for path in freeze if path != "latents"))


def within(freeze: Sequence[str], network: str) -> tuple[str, ...]:
    """Selects the paths within one network, relative to it.

    Args:
      freeze: Paths as in `train.freeze`.
      network: Name of the network, the first part of a path.

    Returns:
      Tuple of paths; the empty path means the whole network.
    """
    parts = (path.strip("/").split("/", 1) for path in freeze)
    return tuple("".join(rest) for name, *rest in parts if name == network)


def is_frozen(path: str, freeze: Sequence[str]) -> bool:
    """Returns whether a parameter is at or below one of the paths.

    Args:
      path: Path of the parameter.
      freeze: Paths; the empty path contains everything.

    Returns:
      Whether it is.
    """
    frozen = (name.strip("/") for name in freeze)
    return any(not name or f"{path}/".startswith(f"{name}/") for name in frozen)


def stop_frozen_gradients(params: Any, freeze: Sequence[str]) -> Any:
    """Stops the gradients of frozen parameters; call it in the differentiated function.

    Args:
      params: Pytree of parameters.
      freeze: Paths relative to it.

    Returns:
      Pytree with the same values.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            jax.lax.stop_gradient(leaf) if is_frozen(path_name(path), freeze) else leaf
        ),
        params,
    )


def freeze_updates(
    optimizer: optax.GradientTransformation, freeze: Sequence[str]
) -> optax.GradientTransformation:
    """Excludes frozen parameters from an optimiser, including its clipping.

    Args:
      optimizer: optax.GradientTransformation.
      freeze: Paths relative to the tree that it will be applied to.

    Returns:
      optax.GradientTransformation whose updates of frozen parameters are zero.
    """
    if not freeze:
        return optimizer

    def labels(params):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: is_frozen(path_name(path), freeze), params
        )

    return optax.multi_transform({False: optimizer, True: optax.set_to_zero()}, labels)


def check_freeze(freeze: Sequence[str], params: Any) -> None:
    """Checks that there are parameters at each path.

    Args:
      freeze: Paths as in `train.freeze`.
      params: Pytree of all parameters of the stage; shapes suffice.

    Raises:
      ConfigError: If there are none at a path.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    names = [path_name(path) for path, _ in leaves]
    for path in freeze:
        if not any(is_frozen(name, (path,)) for name in names):
            known = {"/".join(name.split("/")[:2]) for name in names}
            raise ConfigError(
                f'train.freeze: there are no parameters at "{path}"; '
                f"{suggest(path, known)}"
            )
