"""The state that a run starts from: restored, drawn, or with the weights of another."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict
from ml_collections import ConfigDict

from ldm_jax import checkpoint, peers, sharding
from ldm_jax.build import identity_of_config
from ldm_jax.checkpoint import TrainState
from ldm_jax.conditioners import CONDITIONERS, Conditioner
from ldm_jax.config import NETWORKS, differences
from ldm_jax.data.sources import compare_records
from ldm_jax.errors import CheckpointError, ConfigError, ConversionError
from ldm_jax.seeds import make_key
from ldm_jax.trained import record_of, with_text_towers
from ldm_jax.training.compiled import jit_init
from ldm_jax.training.freeze import freeze_paths
from ldm_jax.weights.towers import load_tower


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run begins with.

    Attributes:
      config: ConfigDict.
      mesh: Mesh of its devices.
      data: Its `Data`.
      stage: The Stage that it trains.
      shardings: How its TrainState is split over the mesh.
      checkpoints: Checkpoints of its workdir.
      meta: What each checkpoint records; "init_from" is added here.
      console: Where lines go.
    """

    config: Any
    mesh: Any
    data: Any
    stage: Any
    shardings: Any
    checkpoints: Any
    meta: dict
    console: Any


def first_state(run: Run, abstract: TrainState, start: int) -> TrainState:
    """Restores the state, or draws it directly into its shardings.

    Args:
      run: Run.
      abstract: State of shapes and dtypes.
      start: Step of the checkpoint to go on from; 0 for a new run.

    Returns:
      State of global arrays.

    Raises:
      ConfigError: If weights are to stay as they are drawn, or those of
        `train.init_from` are of another model.
      CheckpointError: If a checkpoint cannot be read or holds other shapes.
    """
    _describe(run, abstract, start)
    if start:
        target = sharding.abstract_like(abstract, run.shardings)
        return run.checkpoints.restore(start, target)
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
    """Puts the weights of another run in place of those that were drawn.

    A discriminator brings its batch statistics, which an activation norm is nothing
    without; optimisers begin anew.

    Args:
      run: Run of the loop; where the weights came from is added to its `meta`.
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
    """Puts weights, and statistics, in place of a part of those that were drawn."""
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
    """Places a part of a nested dict by the names in it."""
    if not isinstance(tree, dict):
        return sharding.put_tree(tree, shardings)
    return {name: _put(part, shardings[name]) for name, part in tree.items()}


def _merge(tree, part):
    """Nested dict with the leaves of a part of it in place of its own."""
    if not isinstance(part, dict):
        return part
    return tree | {name: _merge(tree[name], new) for name, new in part.items()}


def _describe(run, abstract, start):
    """Prints what is about to be trained, on what and from where."""
    config, line = run.config, run.console.line
    for name, params in abstract.params.items():
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
    if 0 < start < total:
        line(f"resuming at step {start} of {total}")


# Networks that serve training alone: a run may start without the old one.
_AIDS = ("discriminator",)


def load_initial(
    config: ConfigDict, params: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], list[str]]:
    """Loads the weights that a run starts from, as `train.init_from` says.

    The moving average where one was kept.  What the other run has no weights of, and a
    discriminator of another make, is left out and noted.

    Args:
      config: ConfigDict of the run that starts.
      params: The weights that it trains, shapes suffice: dict with one entry per
        network.

    Returns:
      (weights, stats, record, notes): dict like `params` of NumPy arrays, batch
      statistics of the networks in it that have some, where they came from, and
      sentences on what was left out or differs.

    Raises:
      ConfigError: If the other run trained something else.
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
        # An average is not kept of everything.
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
            notes.append(f"{name} starts anew: {reason}")
    stats = _load_stats(meta["folder"], weights)
    notes += model_notes(config, theirs)
    return weights, stats, record_of(workdir, meta), notes


def _load_stats(folder, weights):
    """Batch statistics, which lie beside optimiser states: read where there are any."""
    if not any(name in weights for name in _AIDS):
        return {}
    stats = checkpoint.load_item(folder, "training")["stats"]
    return {name: tree for name, tree in stats.items() if name in weights}


def model_notes(config: ConfigDict, theirs: ConfigDict) -> list[str]:
    """Compares what the weights of two configs mean beyond what shapes show.

    Args:
      config: ConfigDict of this run.
      theirs: ConfigDict of the run whose weights it starts from.

    Returns:
      A sentence for each difference.
    """
    return [
        f"warning: {key} is {now}, in train.init_from it was {then}"
        for key, now, then in differences(*map(identity_of_config, (config, theirs)))
    ]


def _difference(name, ours, theirs):
    """Names the first place where two trees of weights do not agree in shape."""
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


def initial_weights(
    conditioner: Conditioner, without: Collection[str] = ()
) -> dict[str, Any]:
    """Reads the towers that a new run takes over from elsewhere.

    Args:
      conditioner: Conditioner.
      without: Batch keys of towers that the run does without, on stored states.

    Returns:
      Nested dict of NumPy arrays, a part of the parameters {"conditioner": ...}.

    Raises:
      ConfigError: If a file cannot be used, or a tower would keep random weights for
        good.
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
    """The towers that training leaves alone.

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


# Keys that may change between two runs of one workdir: they do not alter what a step
# computes, or say how it began (train.init_from) and how long it goes on.
FREE_KEYS = (
    "sample",
    "eval",
    "first_stage.workdir",
    "data.data_dir",
    "data.workers",
    "data.restart_workers",
    "data.eval_split",
    "data.eval_name",
    "data.max_image_gb",
    "data.cache_gb",
    "data.index_dir",
    "train.init_from",
    "train.num_steps",
    "train.log_every",
    "train.eval_every",
    "train.eval_batches",
    "train.preview_every",
    "train.preview_images",
    "train.checkpoint_every",
    "train.keep_last",
    "train.keep_every",
    "train.mesh",
    "train.sharding_overrides",
    "train.wandb",
    # It alters roundings alone, and is of the devices that a run has.
    *(f"{section}.attention_kernel" for section in NETWORKS.values()),
)


# Keys that a checkpoint settles for good.
FIXED_KEYS = (
    "first_stage.step",
    "first_stage.scaling_factor",
    "first_stage.latents_mean",
    "first_stage.latents_std",
    "first_stage.latent_statistics",
)


def check_config(
    config: ConfigDict, meta: Mapping[str, Any], allow_change: bool
) -> list[str]:
    """Compares the config with the one that a checkpoint records.

    Args:
      config: ConfigDict of this run.
      meta: The checkpoint's `meta`.
      allow_change: Accept a difference.

    Returns:
      Sentences on free keys that changed and should be noticed.

    Raises:
      CheckpointError: If they differ, naming the keys.
    """
    if meta.get("converted"):
        raise CheckpointError(
            "this workdir holds a converted model, which no run can go on from: give "
            "another --workdir, and this one as --config.train.init_from"
        )
    recorded = ConfigDict(meta["config"])
    rows = differences(config, recorded, FREE_KEYS)
    if freeze_paths(config) == freeze_paths(recorded):
        rows = [row for row in rows if row[0] != "train.freeze"]
    for key, ours, theirs in rows:
        if key in FIXED_KEYS:
            raise CheckpointError(
                f"{key} is {theirs} in this workdir and {ours} here, but the denoiser "
                "was trained on those latents; use another --workdir, and this one as "
                "--config.train.init_from"
            )
    if not rows or allow_change:
        return _notes(config.train, recorded.train, rows)
    changes = (f"{key}: {theirs} there, {ours} here" for key, ours, theirs in rows)
    shown = "; ".join(changes)
    raise CheckpointError(
        f"the checkpoint in this workdir belongs to another config ({shown}); use "
        "another --workdir, or --allow_config_change to go on with the new values"
    )


def check_same_data(record: Mapping[str, Any]) -> None:
    """Checks that all processes of a job have the same data; all must call it.

    Each loads its rows of every batch, by the order of all examples.

    Args:
      record: What `Data.record` gives.

    Raises:
      ConfigError: If the data differ from process to process.
    """
    names = "num_examples", "num_classes", "fingerprint"
    found = peers.gather(", ".join(f"{name} {record.get(name)}" for name in names))
    if len(set(found)) > 1:
        places = "; ".join(f"process {i}: {text}" for i, text in enumerate(found))
        raise ConfigError(
            f"the data are not the same on all hosts ({places}): see what the logs "
            "say of files that were left out, or copy one set to all of them"
        )


def check_data(
    config: ConfigDict,
    record: Mapping[str, Any],
    meta: Mapping[str, Any],
    allow_change: bool,
) -> list[str]:
    """Compares the data with those that a checkpoint records.

    Args:
      config: ConfigDict of this run.
      record: What `Data.record` gives.
      meta: The checkpoint's `meta`; older ones record the classes alone or nothing.
      allow_change: Accept what a model can go on with, as more images.

    Returns:
      Sentences on what changed and was accepted.

    Raises:
      CheckpointError: If they differ, naming how.
    """
    then = meta.get("data") or {
        key: meta[key] for key in ("num_classes", "class_names") if key in meta
    }
    changes = compare_records(record, then, _knows_classes(config))
    texts = [change.text for change in changes]
    if all(change.fits for change in changes) and allow_change:
        return [f"the data have changed: {text}" for text in texts]
    if not changes:
        return []
    advice = "bring those back, or use another --workdir"
    if all(change.fits for change in changes):
        advice += ", or --allow_config_change to go on with these"
    raise CheckpointError(
        "the data are not those that this workdir was trained on: "
        f"{'; '.join(texts)}; {advice}"
    )


def _knows_classes(config):
    """Whether a model is made for the classes of the data's images."""
    entries = (config.get("conditions") or {}).values()
    kinds = [CONDITIONERS.get(entry.get("kind")) for entry in entries]
    return config.stage == "classifier" or any(
        "num_classes" in getattr(kind, "from_dataset", ()) for kind in kinds
    )


def _notes(train, recorded, rows):
    notes = [f"changed: {key} from {theirs} to {ours}" for key, ours, theirs in rows]
    decays = train.decay != "constant" and train.decay_steps is None
    if decays and train.num_steps != recorded.num_steps:
        notes.append(
            f"train.num_steps is {train.num_steps}, was {recorded.num_steps}: the "
            f"{train.decay} learning rate now ends at step {train.num_steps}"
        )
    return notes
