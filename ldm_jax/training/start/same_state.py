"""Checks that the state of a checkpoint has the arrays of a changed config."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ldm_jax.build import make_backbone, make_classifier, make_first_stage
from ldm_jax.config import NETWORKS, build, entries_of, to_dict
from ldm_jax.errors import CheckpointError
from ldm_jax.models.discriminator import PatchDiscriminator
from ldm_jax.models.identity import FREE_FIELDS
from ldm_jax.models.operations.parameters import variable_shapes
from ldm_jax.sharding import named_leaves
from ldm_jax.training.freeze import freeze_paths, is_frozen
from ldm_jax.training.optimizer import make_optimizer, make_rate

Rows = Sequence[tuple[str, Any, Any]]


class _Part(NamedTuple):
    """A part of the state.

    Attributes:
      keys: Keys or sections of a config that may change which arrays it has.
      arrays: Config -> description of its arrays, to be compared.
      reason: Why a run cannot resume if that differs, for the message.
      advice: What the user can do, for the message.
    """

    keys: tuple[str, ...]
    arrays: Callable[[ConfigDict], Any]
    reason: str
    advice: str


def check_same_state(config: ConfigDict, recorded: ConfigDict, rows: Rows) -> None:
    """Raises for changes after which a checkpoint has other arrays than the run.

    Only parts that have changed are checked, and of networks only shapes.

    Args:
      config: ConfigDict of this run.
      recorded: ConfigDict of the checkpoint, of the same stage.
      rows: (dotted key, our value, their value) of every key that has changed.

    Raises:
      CheckpointError: If the run cannot resume from it; the message has advice.
    """
    for part in (
        _Part((NETWORKS[config.stage],), _network, _WEIGHTS, _GO_BACK),
        *_PARTS,
    ):
        changed = [row for row in rows if _alters(row[0], part.keys)]
        if changed and _differ(part.arrays, config, recorded):
            shown = "; ".join(
                f"{key} is {theirs} in this workdir and {ours} here"
                for key, ours, theirs in changed
            )
            raise CheckpointError(f"{shown}, but {part.reason}; {part.advice}")


def _alters(key, keys):
    """Whether a key is, or is within, one of `keys`, and may change arrays at all."""
    inside = any(key == each or key.startswith(f"{each}.") for each in keys)
    return inside and key.rpartition(".")[2] not in FREE_FIELDS


def _differ(arrays_of: Callable, config: ConfigDict, recorded: ConfigDict) -> bool:
    try:
        return arrays_of(config) != arrays_of(recorded)
    except (AttributeError, KeyError, ValueError):
        # A backbone with other inputs, or a key added later: then restoring will fail
        # if the arrays differ.
        return False


def _network(config):
    """Path -> shape of the weights, apart from what depends on data and conditions."""
    if config.stage == "autoencoder":
        module = make_first_stage(config.first_stage)
        return _shapes(module, module.downsampling_factor, module.image_channels)
    if config.stage == "classifier":
        module = make_classifier(config, num_classes=1)
        return _shapes(module, module.size_multiple, 1, _numbers(1))
    module = make_backbone(config.backbone, out_channels=1)
    side = module.size_multiple
    try:
        return _shapes(module, side, 1, _numbers(1), _numbers(1, 1, 1))
    except ValueError:
        # It takes no context.
        return _shapes(module, side, 1, _numbers(1))


def _discriminator(config):
    module = build(PatchDiscriminator, config.discriminator, "discriminator")
    return _shapes(module, 2**8, 1)


def _shapes(module, side, channels, *inputs):
    found = variable_shapes(module, _numbers(1, side, side, channels), *inputs)
    return {name: leaf.shape for name, leaf in named_leaves(found).items()}


def _numbers(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _kinds(config):
    return {k: entry.get("kind") for k, entry in entries_of(config.conditions).items()}


def _frozen(config):
    """The frozen paths, without those below another one."""
    paths = {path.strip("/") for path in freeze_paths(config)}
    return {path for path in paths if not is_frozen(path, [*(paths - {path})])}


def _optimizer(config):
    """Frozen paths, shapes of a weight's state, whether the discriminator clips."""
    train = config.train
    made = make_optimizer(to_dict(train.optimizer), make_rate(train), train.grad_clip)
    state = jax.eval_shape(made.init, {"weight": _numbers(1)})
    shapes = {name: leaf.shape for name, leaf in named_leaves(state).items()}
    critic_clip = config.get("loss", {}).get("disc_grad_clip")
    critic_clip = train.grad_clip if critic_clip is None else critic_clip
    return _frozen(config), shapes, bool(critic_clip)


def _average(config):
    return bool(config.train.ema_decay)


def _loss(config):
    """Which arrays the losses have; two options share that of the usage of codes."""
    variance, lecam, codes, restarts = map(config.loss.get, _SWITCHES)
    return [bool(kept) for kept in (variance, lecam, codes, codes or restarts)]


_WEIGHTS = "the weights do not fit into that network"
_GO_BACK = "go back to that, or use another --workdir, where training starts over"
# For differences that do not matter to `load_initial`.
_FROM_WEIGHTS = "use another --workdir, and this one as --config.train.init_from"

# Options of losses that add arrays to the state if they are on.
_SWITCHES = (
    *("learn_logvar", "lecam_weight", "codebook_ema_decay", "restart_threshold"),
)

# Besides the stage's main network.
_PARTS = (
    _Part(("conditions",), _kinds, "the weights do not fit those conditions", _GO_BACK),
    _Part(("discriminator",), _discriminator, _WEIGHTS, _FROM_WEIGHTS),
    _Part(
        ("train.ema_decay",),
        _average,
        "a moving average is kept from the first step on or not at all",
        _FROM_WEIGHTS,
    ),
    _Part(
        (
            *("train.optimizer", "train.grad_clip", "train.freeze"),
            "loss.disc_grad_clip",
        ),
        _optimizer,
        "the optimiser's states do not fit",
        _FROM_WEIGHTS,
    ),
    _Part(
        tuple(f"loss.{key}" for key in _SWITCHES),
        _loss,
        "the arrays that this needs are kept from the first step on or not at all",
        _FROM_WEIGHTS,
    ),
)
