"""All conditioners of a model as one module, made from a config section."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import freeze

from ldm_jax import ranges
from ldm_jax.annotations import Array, Bool, Key, Num
from ldm_jax.conditioners.label import ClassLabel, ClipImage, Raw
from ldm_jax.conditioners.maps import Encoded, MaskedLatents, Spatial
from ldm_jax.conditioners.sizes import SizeAndCrop
from ldm_jax.conditioners.tokens import ClipText, LayoutTokens, Text
from ldm_jax.errors import ConfigError
from ldm_jax.models.identity import FREE_FIELDS


class Conditioning(NamedTuple):
    """The conditioning slots of the denoiser; any may be None.

    Attributes:
      context: Tokens for cross-attention, [B, L, D].
      concat: Maps concatenated to the noisy latents, [B, h, w, c]; h and w are 1 for
        maps that are constant.
      vector: Added to the timestep embedding, [B, E].
    """

    context: Any = None
    concat: Any = None
    vector: Any = None


# Keys of an entry besides the fields of its kind.
_BESIDES = ("kind", "dropout", "weights")


class Tower(NamedTuple):
    """A network of a conditioner whose weights can be pretrained elsewhere.

    Attributes:
      module: Linen module.
      path: Path of its parameters in the conditioner's, such as "style/tower".
      frozen: Whether training leaves them unchanged.
      weights: File or folder from which a new run loads them; None for none.
    """

    module: nn.Module
    path: str
    frozen: bool
    weights: str | None


class Conditioner(nn.Module):
    """All conditioners of a model; make it with `make_conditioner`.

    Attributes:
      entries: Batch key -> {"kind": row of CONDITIONERS, "dropout": fraction of the
        training examples whose input is replaced by null, "weights": file or folder
        from which a new run loads the tower, and the fields of that row}. Entries that
        share a slot are joined in alphabetical order of their keys, so that the order
        in which a config was written or stored does not matter.
    """

    entries: Mapping[str, Mapping[str, Any]]

    @nn.compact
    def __call__(
        self,
        batch: Mapping[str, Any],
        *,
        drop: Mapping[str, Bool[Array, " batch"]] | None = None,
    ) -> Conditioning:
        """Embeds a batch.

        Args:
          batch: Dict with at least the keys of `entries`, arrays [B, ...], from
            `encode`.
          drop: Batch key -> bool [B], true for the examples whose condition of that key
            is dropped (Ho & Salimans 2022, Alg. 1); None to drop nothing.

        Returns:
          Conditioning.

        Raises:
          ValueError: If the batch lacks a key, or conditions that share a slot do not
            fit together.
        """
        self.require_keys(batch)
        filled = {}
        for key, entry in sorted(self.entries.items()):
            module = _make(entry, name=key)
            inputs = batch[key]
            if drop is not None and key in drop:
                inputs = _where(drop[key], module.null(inputs), inputs)
            filled.setdefault(module.slot, {})[key] = module(inputs)
        return Conditioning(**{slot: _join(slot, a) for slot, a in filled.items()})

    @nn.nowrap
    def encode(
        self, batch: Mapping[str, Any], encode_images: Callable[[Any], Any]
    ) -> dict[str, Any]:
        """Encodes inputs that are used as latents with the first stage.

        Args:
          batch: Dict with at least the keys of `entries`, as loaded from the data.
          encode_images: Maps images [B, H, W, 3], uint8 or floats in [-1, 1], to
            latents of unit variance.

        Returns:
          Dict like `batch`; other inputs are unchanged.
        """
        self.require_keys(batch)
        modules = {key: _make(e, parent=None) for key, e in self.entries.items()}
        return dict(batch) | {
            key: module.encode(batch[key], encode_images)
            for key, module in modules.items()
            if hasattr(module, "encode")
        }

    @property
    def encodes_images(self) -> bool:
        """Whether the first stage encodes any input."""
        kinds = [CONDITIONERS[entry["kind"]] for entry in self.entries.values()]
        return any(hasattr(kind, "encode") for kind in kinds)

    @nn.nowrap
    def null_inputs(
        self, batch: Mapping[str, Any], keys: Collection[str] | None = None
    ) -> dict[str, Num[Array, "..."]]:
        """Returns null inputs, which mean "without the condition".

        Args:
          batch: Dict with the keys of `entries`, from `encode`.
          keys: Keys to return; all keys of `entries` by default.

        Returns:
          Batch key -> array shaped like the batch's.
        """
        self.require_keys(batch)
        return {
            key: _make(entry, parent=None).null(batch[key])
            for key, entry in self.entries.items()
            if keys is None or key in keys
        }

    @nn.nowrap
    def draw_drop(
        self, rng: Key[Array, ""], batch_size: int
    ) -> dict[str, Bool[Array, " {batch_size}"]]:
        """Draws the examples whose conditions are dropped, independently for each key.

        Ho & Salimans 2022, Alg. 1, line 3.

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
    def towers(self) -> dict[str, Tower]:
        """Returns the networks whose weights can be pretrained elsewhere.

        Returns:
          Batch key -> Tower.
        """
        modules = {key: _make(e, parent=None) for key, e in self.entries.items()}
        return {
            key: Tower(
                module.tower(),
                "/".join(filter(None, (key, module.tower_name))),
                module.frozen,
                self.entries[key].get("weights"),
            )
            for key, module in sorted(modules.items())
            if hasattr(module, "tower")
        }

    @nn.nowrap
    def check(self, batch: Mapping[str, Any]) -> None:
        """Checks inputs on the host, where they enter; call it outside of `jit`.

        Args:
          batch: Dict of NumPy arrays or lists, before `encode`.

        Raises:
          ValueError: If a key is missing or its values are invalid for the entry.
        """
        self.require_keys(batch)
        for key, entry in self.entries.items():
            try:
                _make(entry, parent=None).check(batch[key])
            except ValueError as error:
                raise ValueError(f"condition {key!r}: {error}") from error

    @nn.nowrap
    def require_keys(self, batch: Mapping[str, Any]) -> None:
        """Checks that a batch has the keys of all entries.

        Args:
          batch: Dict with batch keys.

        Raises:
          ValueError: If it lacks a key of `entries`.
        """
        for key in self.entries:
            if key not in batch:
                raise ValueError(
                    f"the batch has no {key!r} for the condition of that name: it has "
                    f"{', '.join(map(repr, batch)) or 'nothing'}; rename the condition "
                    "or have the data deliver it"
                )


def make_conditioner(
    entries: Mapping[str, Mapping[str, Any]] | None = None,
) -> Conditioner:
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
        key: {k: _plain(k, v) for k, v in entry.items()}
        for key, entry in (entries or {}).items()
    }
    for key, entry in entries.items():
        problem = _unknown(entry) or _problem(entry)
        if problem:
            raise ValueError(f"condition {key!r}: {problem}")
        check_entry(key, entry)
    return Conditioner(freeze(entries))  # Frozen, so that it can be hashed.


def check_entry(key: str, entry: Mapping[str, Any]) -> None:
    """Checks an entry of the config section `conditions`.

    Options that it does not set may come from the data set, so they may be missing.

    Args:
      key: Batch key.
      entry: The entry.

    Raises:
      ConfigError: If its kind or an option is unknown, or a value is out of its range.
    """
    problem = _unknown(entry)
    if problem:
        raise ConfigError(f"condition {key!r}: {problem}")
    slot, slots = entry.get("slot"), CONDITIONERS[entry["kind"]].slots
    if slot is not None and slot not in slots:
        raise ConfigError(
            f"condition {key!r}: kind {entry['kind']!r} cannot fill slot {slot!r}: "
            f"choose one of {', '.join(slots)}"
        )
    fields = {name: value for name, value in entry.items() if name != "dropout"}
    ranges.check_fields(CONDITIONERS[entry["kind"]], fields, f"conditions.{key}")
    # Options that every kind has.
    common = {name: entry[name] for name in entry.keys() - fields.keys()}
    ranges.check_section(common, f"conditions.{key}")


def _unknown(entry):
    """What is unknown in an entry, its kind or an option; None if all is known."""
    kind = entry.get("kind")
    if not isinstance(kind, str) or kind not in CONDITIONERS:
        return f"unknown kind {kind!r}: choose one of {', '.join(CONDITIONERS)}"
    known = _options_of(kind)
    unknown = entry.keys() - {"kind", *known}
    if unknown:
        return f"kind {kind!r} has no option {min(unknown)!r}: it takes " + (
            ", ".join(known)
        )
    return None


def _options_of(kind):
    """Options that entries of a kind may have."""
    fields = [field.name for field in dataclasses.fields(CONDITIONERS[kind])]
    known = ["dropout", *(name for name in fields if name not in ("parent", "name"))]
    return known + ["weights"] * hasattr(CONDITIONERS[kind], "tower")


def _plain(name, value):
    """Converts a value for modules: lists, which come from JSON, are not hashable."""
    value = tuple(value) if isinstance(value, list) else value
    return ranges.dtype_name(value) if name == "dtype" else value


def entry_identity(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that a condition's weights depend on beyond their shapes.

    Args:
      entry: Entry of the config section `conditions`; options that come from the data
        set may be missing.

    Returns:
      JSON-like dict of its kind and of its options with a default; the others show in
      shapes.
    """
    fields = dataclasses.fields(CONDITIONERS[entry["kind"]])
    options = {
        field.name: entry.get(field.name, field.default)
        for field in fields
        if field.default is not dataclasses.MISSING and field.name not in FREE_FIELDS
    }
    return options | {"kind": entry["kind"]}


def _problem(entry: Mapping[str, Any]) -> str | None:
    """What is wrong with an entry and how to fix it; None if it is valid."""
    kind, dropout = entry.get("kind"), entry.get("dropout", 0.0)
    fields = {f.name: f for f in dataclasses.fields(CONDITIONERS[kind])}
    fields = {k: f for k, f in fields.items() if k not in ("parent", "name")}
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
    options = {k: v for k, v in entry.items() if k not in _BESIDES}
    return CONDITIONERS[entry["kind"]](**options, **kwargs)


def _join(slot: str, filled: Mapping[str, Num[Array, "..."]]) -> Num[Array, "..."]:
    """Joins the arrays of one slot, batch key -> array, to one array.

    Tokens and channels of maps are concatenated, vectors are summed. A map of one pixel
    is broadcast to the size of the others.
    """
    arrays = list(filled.values())
    if slot == "concat":
        sizes = {key: array.shape[1:3] for key, array in filled.items()}
        size = max(sizes.values())
        _require_same(slot, "sizes", sizes, {size, (1, 1)})
        arrays = [jnp.broadcast_to(a, (len(a), *size, a.shape[-1])) for a in arrays]
        return jnp.concatenate(arrays, axis=-1)
    widths = {key: array.shape[-1] for key, array in filled.items()}
    _require_same(slot, "widths", widths, {arrays[0].shape[-1]})
    return sum(arrays) if slot == "vector" else jnp.concatenate(arrays, axis=1)


def _require_same(slot, what, found, allowed):
    if not allowed.issuperset(found.values()):
        listed = ", ".join(f"{key} {value}" for key, value in found.items())
        raise ValueError(
            f"conditions that share the slot {slot!r} must agree in their {what}, got "
            f"{listed}: change their options or the slot of one"
        )


def _where(drop, null, inputs):
    """Per-example choice in any pytree of inputs."""

    def choose(a, b):
        return jnp.where(drop.reshape(-1, *[1] * (b.ndim - 1)), a, b)

    return jax.tree.map(choose, null, inputs)


# Modules that fill a slot, by their name in configs.
CONDITIONERS = {
    "class_label": ClassLabel,
    "text": Text,
    "clip_text": ClipText,
    "layout": LayoutTokens,
    "clip_image": ClipImage,
    "spatial": Spatial,
    "encoded": Encoded,
    "masked_image": MaskedLatents,
    "size_and_crop": SizeAndCrop,
    "raw": Raw,
}
