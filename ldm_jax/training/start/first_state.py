"""The state that a run starts from: restored, initialised, or from another run."""

from typing import Any

import jax
import jax.numpy as jnp

from ldm_jax import sharding
from ldm_jax.checkpoint import TrainState
from ldm_jax.errors import ConfigError
from ldm_jax.seeds import make_key
from ldm_jax.training.compiled import jit_init
from ldm_jax.training.start.init_from import load_initial
from ldm_jax.training.start.opened import Run


def first_state(run: Run) -> TrainState:
    """Restores the state, or initialises it directly into its shardings.

    Args:
      run: The run; the source of loaded weights is added to its `meta`.

    Returns:
      State of global arrays.

    Raises:
      ConfigError: If weights would be frozen at their random initial values, or those
        of `train.init_from` are of another model.
      CheckpointError: If a checkpoint cannot be read or holds other shapes.
    """
    _describe(run)
    if run.start:
        target = sharding.abstract_like(run.abstract, run.shardings)
        return run.checkpoints.restore(run.start, target)
    train = run.config.train
    if train.freeze and not train.init_from:
        raise ConfigError(
            f"train.freeze={tuple(train.freeze)} would keep weights as they are drawn; "
            "give train.init_from, the workdir of the run to start from"
        )
    init = jit_init(run.stage.init, run.shardings, run.mesh)
    state = init(make_key(run.config.seed))
    if train.init_from:
        return start_from(run, state)
    return _replace(run, state, run.stage.initial) if run.stage.initial else state


def start_from(run: Any, state: TrainState) -> TrainState:
    """Replaces initialised weights by those of another run.

    Batch statistics of a discriminator are loaded, too, as an ActNorm does not work
    without them; the optimisers' states are new.

    Args:
      run: The run; the source of the weights is added to its `meta`.
      state: State of a new run; its buffers are donated.

    Returns:
      State with the weights that `train.init_from` names.

    Raises:
      ConfigError: If they are of another model.
      CheckpointError: If they cannot be read.
    """
    weights, stats, record, notes = load_initial(run.config, state.params)
    run.meta["init_from"] = record
    for note in notes:
        run.console.line(note)
    return _replace(run, state, weights, stats)


def _replace(run, state, weights, stats=None):
    """Replaces a part of the initialised weights, and statistics, by given ones."""
    weights = _put(weights, run.shardings.params)
    stats = _put(stats or {}, run.shardings.stats)

    def replace(state, weights, stats):
        # Copies: donated buffers must not be shared.
        average = {k: v for k, v in weights.items() if k in state.ema_params}
        return state.replace(
            params=_merge(state.params, jax.tree.map(jnp.copy, weights)),
            ema_params=_merge(state.ema_params, jax.tree.map(jnp.copy, average)),
            stats=_merge(state.stats, jax.tree.map(jnp.copy, stats)),
        )

    replace = jax.jit(replace, donate_argnums=0, out_shardings=run.shardings)
    return replace(state, weights, stats)


def _put(tree, shardings):
    """Puts a part of a nested dict on devices, with the shardings of its names."""
    if not isinstance(tree, dict):
        return sharding.put_tree(tree, shardings)
    return {name: _put(part, shardings[name]) for name, part in tree.items()}


def _merge(tree, part):
    """Replaces the leaves of a nested dict that are in `part`."""
    if not isinstance(part, dict):
        return part
    return tree | {name: _merge(tree[name], new) for name, new in part.items()}


def _describe(run):
    """Prints what is trained, on which data and devices, and from which step."""
    config, line = run.config, run.console.line
    for name, params in run.abstract.params.items():
        size = sum(leaf.size for leaf in jax.tree.leaves(params))
        line(f"{name}: {size:,} parameters")
    device = jax.devices()[0].device_kind
    line(
        f"{config.stage}: {run.data.num_examples:,} images, "
        f"batch {config.train.batch_size}, {run.mesh.size} x {device} as "
        f"{dict(run.mesh.shape)}"
    )
    for text in run.data.describe_order():
        line(text)
    total = config.train.num_steps
    if 0 < run.start < total:
        line(f"resuming at step {run.start} of {total}")
