"""Conditioning: what steers the denoiser, in three optional slots.

A conditioner is a linen module with a field `slot` and two methods: `__call__(inputs)`
gives the array that fills the slot, `null(inputs)` gives inputs that mean "nothing
known" and needs no parameters. A third, `check(inputs)`, raises on the host what a
compiled program could not. To add one, write the module and add a row to CONDITIONERS;
configs then name it under the batch key it reads.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import freeze


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


class ClassLabel(nn.Module):
    """A learned embedding of the class.

    Attributes:
      num_classes: Number of classes K; labels are in [0, K).
      features: Width of the embedding: the U-Net's context width, or in the slot
        "vector" the width of its timestep embedding (4 x channels).
      slot: "context" for one token [B, 1, features], "vector" for [B, features].
      null_class: Whether there is a row K that means "no class", which guidance and
        dropout need.
      dtype: Type of the output.
    """

    num_classes: int
    features: int
    slot: str = "context"
    null_class: bool = True
    dtype: Any = jnp.float32

    slots = ("context", "vector")

    @nn.compact
    def __call__(self, labels):
        embedding = nn.Embed(
            self.num_classes + self.null_class,
            self.features,
            # PyTorch's default, which the original was trained from.
            embedding_init=nn.initializers.normal(1.0),
            dtype=self.dtype,
            name="embed",
        )(labels)
        return embedding[:, None] if self.slot == "context" else embedding

    @nn.nowrap
    def null(self, labels):
        """Labels of the null class, shaped like `labels`."""
        if not self.null_class:
            raise ValueError(
                "this class_label has no null class, which guidance and dropout need: "
                "set null_class=True"
            )
        return jnp.full_like(labels, self.num_classes)

    @nn.nowrap
    def check(self, labels):
        """Raises ValueError if a label is no integer in [0, K], K being the null."""
        labels = np.asarray(labels)
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(
                f"labels must be integers [B], got {labels.dtype} {labels.shape}"
            )
        count = self.num_classes + self.null_class
        wrong = labels[(labels < 0) | (labels >= count)]
        if wrong.size:
            raise ValueError(
                f"label {wrong[0]} is out of range: there are {self.num_classes} "
                f"classes, so give labels from 0 to {self.num_classes - 1}"
            )


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
    entries = {key: dict(entry) for key, entry in (entries or {}).items()}
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
    module = _make(entry, parent=None)
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
CONDITIONERS = {"class_label": ClassLabel}
