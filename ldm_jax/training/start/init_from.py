"""Loads the weights of another run to start from, set by `train.init_from`."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from ldm_jax import checkpoint, sharding
from ldm_jax.build import identity_of_config
from ldm_jax.config import differences
from ldm_jax.errors import ConfigError
from ldm_jax.trained import record_of, with_text_towers

# Networks that are only used in training: a run may start with new ones.
_AIDS = ("discriminator",)


def load_initial(
    config: ConfigDict, params: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], list[str]]:
    """Loads the weights of `train.init_from`.

    They are those of the moving average, if there is one.  Networks without weights in
    the other run, and a discriminator of another architecture, are left out and noted.

    Args:
      config: ConfigDict of the run that starts.
      params: The weights that it trains, shapes suffice: dict with one entry per
        network.

    Returns:
      (weights, stats, record, notes): dict like `params` of NumPy arrays, batch
      statistics of the networks in it that have some, the record of their source, and
      sentences on what was left out or differs.

    Raises:
      ConfigError: If the other run trained another stage or model.
      CheckpointError: If there is no checkpoint, or it cannot be read.
    """
    workdir = config.train.init_from
    step = checkpoint.common_step(workdir)
    theirs, found, meta = checkpoint.load_weights(workdir, step)
    if theirs.stage != config.stage:
        raise ConfigError(
            f"train.init_from={workdir} holds a run of the stage '{theirs.stage}'; "
            f"this one is of the stage '{config.stage}'"
        )
    if found.keys() != params.keys():
        # Not every network has a moving average.
        found = checkpoint.load_weights(workdir, meta["step"], average=False)[1] | found
    found = with_text_towers(found, theirs, meta, workdir)
    weights, notes = {}, [f"starting from step {meta['step']} of {workdir}"]
    for name, ours in params.items():
        reason = _difference(name, ours, found.get(name))
        if not reason:
            weights[name] = found[name]
        elif name in found and name not in _AIDS:
            raise ConfigError(
                f"train.init_from={workdir} holds another model: {reason}; use the "
                "config that made it"
            )
        else:
            notes.append(f"{name} starts from new weights: {reason}")
    stats = _load_stats(meta["folder"], weights)
    notes += model_notes(config, theirs)
    return weights, stats, record_of(workdir, meta), notes


def _load_stats(folder, weights):
    """Loads batch statistics, stored with optimiser states; only if any are needed."""
    if not any(name in weights for name in _AIDS):
        return {}
    stats = checkpoint.load_item(folder, "training")["stats"]
    return {name: tree for name, tree in stats.items() if name in weights}


def model_notes(config: ConfigDict, theirs: ConfigDict) -> list[str]:
    """Compares settings that the weights of two configs depend on beyond shapes.

    Args:
      config: ConfigDict of this run.
      theirs: ConfigDict of the run whose weights it starts from.

    Returns:
      A warning for each difference.
    """
    return [
        f"warning: {key} is {now}, in train.init_from it was {then}"
        for key, now, then in differences(*map(identity_of_config, (config, theirs)))
    ]


def _difference(name, ours, theirs):
    """Describes the first difference in the shapes of two trees; None if none."""
    if theirs is None:
        return f"{name} is absent there"
    trees = [sharding.named_leaves({name: tree}) for tree in (ours, theirs)]
    for path in sorted(trees[0].keys() | trees[1].keys()):
        here, there = (
            tuple(tree[path].shape) if path in tree else "absent" for tree in trees
        )
        if here != there:
            return f"{path} is {there} there and {here} here"
    return None
