"""Types of feature networks: a row of FEATURES, and a loaded network."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from ldm_jax.annotations import Array, Float, Int, UInt8
from ldm_jax.errors import ConfigError


def to_rgb(
    images: UInt8[Array, "batch h w c"],
) -> Float[Array, "batch h w 3"]:
    """Converts images to the input of all networks.

    Args:
      images: uint8 [B, H, W, C]; a single grey channel is repeated.

    Returns:
      float32 [B, H, W, 3] from 0 to 255.

    Raises:
      ConfigError: If there are neither one nor three channels.
    """
    if images.shape[-1] not in (1, 3):
        raise ConfigError(
            f"images to measure must have 1 or 3 channels, got {images.shape[-1]}: "
            "convert them to RGB"
        )
    return jnp.broadcast_to(images.astype(jnp.float32), (*images.shape[:-1], 3))


class Loaded(NamedTuple):
    """Weights that a row of FEATURES has loaded from a file, or drawn without one.

    Attributes:
      params: Parameters, NumPy or JAX arrays.
      checksum: Checksum of the weights, see `weight_files.checksum`.
      changes: Fields of the row that differ with these weights.
    """

    params: Any
    checksum: str
    changes: Mapping[str, Any] = {}  # noqa: RUF012


class FeatureNetwork(NamedTuple):
    """A row of FEATURES.

    Attributes:
      title: Title for reports.
      where: Where its file of weights can be found, for messages.
      widths: Name of a tap -> number of its features.
      load: Path of a file of weights or None -> Loaded.
      apply: (parameters, uint8 images [B, H, W, C] of one or three channels, names of
        taps) -> dict of tap -> float32 [B, D]. Names are static: under jit, other taps
        are not computed.
      embed_text: None, or (parameters, token ids [B, L]) -> float32 [B, D].
      vocab_size: None, or the size of the vocabulary of `embed_text`.
      convert: None, or path of a file of weights -> the same numbers under their
        published names, for a safetensors file.
      weights_of: None, or the row whose file of weights this row also uses.
      needs_file: Whether it needs a file, as it has no random weights.
    """

    title: str
    where: str
    widths: Mapping[str, int]
    load: Callable[[str | None], Loaded]
    apply: Callable[
        [Any, UInt8[Array, "batch h w c"], tuple[str, ...]],
        Mapping[str, Float[Array, "batch _features"]],
    ]
    embed_text: (
        Callable[[Any, Int[Array, "batch length"]], Float[Array, "batch features"]]
        | None
    ) = None
    convert: Callable[[str], Mapping[str, Any]] | None = None
    vocab_size: int | None = None
    weights_of: str | None = None
    needs_file: bool = False


class Network(NamedTuple):
    """A loaded network.

    Attributes:
      name: Name of its row in FEATURES.
      row: The row, with the changes of these weights.
      params: Parameters, NumPy or JAX arrays; the first argument of `row.apply`.
      record: Record for reports: "network", "weights" (name of the file, or "random"),
        "checksum" and "dtype".
      is_random: Whether its weights are random numbers; metrics with them are not the
        published ones.
    """

    name: str
    row: FeatureNetwork
    params: Any
    record: dict[str, Any]
    is_random: bool


def missing_file(name: str, where: str) -> str:
    """Makes the message that a network needs a file of weights, and how to give it.

    Args:
      name: Row of FEATURES.
      where: `FeatureNetwork.where` of the row.

    Returns:
      The message for the user.
    """
    return (
        f"{name} needs its file of weights: give it with --feature_weights={name}=FILE "
        f"(in training eval.weights); {where}"
    )
