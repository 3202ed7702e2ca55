"""All conditioners of a model as one, made from a config section."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import freeze

from ldm_jax.conditioners.label import ClassLabel
from ldm_jax.conditioners.maps import Spatial
from ldm_jax.conditioners.raw import Raw
from ldm_jax.conditioners.tokens import ClipText, Layout, Text


class Conditioning(NamedTuple):
    """What the denoiser is told; any slot may be None.

    Attributes:
      context: Tokens for cross-attention, [B, L, D].
      concat: Maps stacked onto the noisy latents, [B, h, w, c].
      vector: Added to the timestep embedding, [B, E].
    """

    context: Any = None
    concat: Any = None
    vector: Any = None


# How conditioners that share a slot are joined: end to end, side by side, summed.
_JOIN = {
    "context": lambda arrays: jnp.concatenate(arrays, axis=1),
    "concat": lambda arrays: jnp.concatenate(arrays, axis=-1),
    "vector": sum,
}


class Conditioner(nn.Module):
    """All conditioners of a model; make it with `make_conditioner`.

    Attributes:
      entries: Batch key -> {"kind": row of CONDITIONERS, "dropout": share of training
        examples whose input is replaced by null, and the fields of that row}. Entries
        that share a slot are joined in alphabetical order of their keys, so that a
        config means the same in whatever order it was written or stored.
    """

    entries: Mapping[str, Mapping[str, Any]]

    @nn.compact
    def __call__(self, batch, *, drop=None):
        """Embeds a batch.

        Args:
          batch: Dict with at least the keys of `entries`, arrays [B, ...].
          drop: Batch key -> bool [B], the examples that are told nothing under that
            key; None for no drop at all.

        Returns:
          Conditioning.

        Raises:
          ValueError: If the batch lacks a key.
        """
        self.require_keys(batch)
        filled = {}
        for key, entry in sorted(self.entries.items()):
            module = _make(entry, name=key)
            inputs = batch[key]
            if drop is not None and key in drop:
                inputs = _where(drop[key], module.null(inputs), inputs)
            filled.setdefault(module.slot, []).append(module(inputs))
        return Conditioning(
            **{slot: _JOIN[slot](arrays) for slot, arrays in filled.items()}
        )

    @nn.nowrap
    def null_inputs(self, batch):
        """The inputs that mean "nothing known", for every key of `entries`.

        Args:
          batch: Dict with the keys of `entries`.

        Returns:
          Dict of arrays shaped like the batch's.
        """
        self.require_keys(batch)
        return {
            key: _make(entry, parent=None).null(batch[key])
            for key, entry in self.entries.items()
        }

    @nn.nowrap
    def draw_drop(self, rng, batch_size):
        """Draws which examples are told nothing, each key on its own.

        Args:
          rng: Typed key.
          batch_size: Number of examples B.

        Returns:
          `drop` of `__call__`: batch key -> bool [B] for the keys with dropout.
        """
        return {
            key: jax.random.bernoulli(
                jax.random.fold_in(rng, index), entry["dropout"], (batch_size,)
            )
            for index, (key, entry) in enumerate(sorted(self.entries.items()))
            if entry.get("dropout", 0.0)
        }

    @nn.nowrap
    def frozen_keys(self):
        """Returns the keys whose parameters training leaves alone, as a list."""
        return [
            key
            for key, entry in sorted(self.entries.items())
            if getattr(_make(entry, parent=None), "frozen", False)
        ]

    @nn.nowrap
    def check(self, batch):
        """Checks inputs on the host, where they enter; call it outside of `jit`.

        Args:
          batch: Dict of NumPy arrays or lists.

        Raises:
          ValueError: If a key is missing or its values are not what the entry takes.
        """
        self.require_keys(batch)
        for key, entry in self.entries.items():
            _make(entry, parent=None).check(batch[key])

    @nn.nowrap
    def require_keys(self, batch):
        """Raises ValueError if the batch lacks a key of `entries`."""
        for key in self.entries:
            if key not in batch:
                raise ValueError(
                    f"the batch has no {key!r} for the condition of that name: it has "
                    f"{', '.join(map(repr, batch)) or 'nothing'}; rename the condition "
                    "or have the data deliver it"
                )


def make_conditioner(entries=None):
    """Makes the conditioner from the config section `conditions`.

    Args:
      entries: Batch key -> {"kind": ..., "dropout": ..., fields of the kind}; None or
        empty for an unconditional model.

    Returns:
      A Conditioner.

    Raises:
      ValueError: If a kind, slot or field is unknown, or a dropout is not in [0, 1).
    """
    entries = {
        # Lists, which JSON has for tuples, cannot be hashed.
        key: {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}
        for key, entry in (entries or {}).items()
    }
    for key, entry in entries.items():
        problem = _problem(entry)
        if problem:
            raise ValueError(f"condition {key!r}: {problem}")
    return Conditioner(freeze(entries))  # Frozen, so that it can be hashed.


def _problem(entry):
    """What is wrong with an entry and how to mend it; None if nothing is."""
    kind, dropout = entry.get("kind"), entry.get("dropout", 0.0)
    if kind not in CONDITIONERS:
        return f"unknown kind {kind!r}: choose one of {', '.join(CONDITIONERS)}"
    fields = {f.name: f for f in dataclasses.fields(CONDITIONERS[kind])}
    fields = {k: f for k, f in fields.items() if k not in ("parent", "name")}
    unknown = entry.keys() - fields.keys() - {"kind", "dropout"}
    if unknown:
        return f"kind {kind!r} has no option {min(unknown)!r}: it takes dropout, " + (
            ", ".join(fields)
        )
    for name, field in fields.items():
        if field.default is dataclasses.MISSING and entry.get(name) is None:
            return f"kind {kind!r} needs the option {name!r}: give it"
    try:
        module = _make(entry, parent=None)
    except ValueError as error:
        return str(error)
    if module.slot not in module.slots:
        return f"kind {kind!r} cannot fill slot {module.slot!r}: choose one of " + (
            ", ".join(module.slots)
        )
    if not 0 <= dropout < 1:
        return f"dropout must be in [0, 1), got {dropout}"
    return None


def _make(entry, **kwargs):
    options = {k: v for k, v in entry.items() if k not in ("kind", "dropout")}
    return CONDITIONERS[entry["kind"]](**options, **kwargs)


def _where(drop, null, inputs):
    """Per-example choice in any pytree of inputs."""

    def choose(a, b):
        return jnp.where(drop.reshape(-1, *[1] * (b.ndim - 1)), a, b)

    return jax.tree.map(choose, null, inputs)


# Modules that fill a slot, by the name that configs use.
CONDITIONERS = {
    "class_label": ClassLabel,
    "text": Text,
    "clip_text": ClipText,
    "layout": Layout,
    "spatial": Spatial,
    "raw": Raw,
}
