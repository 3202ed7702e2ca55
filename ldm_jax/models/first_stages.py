"""The kinds of first stages. A kind is defined by one row of FIRST_STAGES.

The row names the module and everything that training, evaluation and the second stage
need to know of it; no other code depends on the kind of a first stage. A module is a
linen module with

    encode(images, train=False) -> posterior with `mode()` and `sample(rng)`
    decode(latents, train=False) -> images
    downsampling_factor, latent_channels, image_channels

and, if it can be trained, a `dtype` and

    reconstruct(images, rng=None, train=False, temperature=1.0)
        -> (reconstructions, input of the regulariser's loss, features)

`models.autoencoder.Autoencoder` implements all of these except `encode`. Every kind has
its own module class, by which `row_of` finds its row.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from ldm_jax.annotations import Array
from ldm_jax.models import quantizer
from ldm_jax.models.autoencoder import (
    IdentityAutoencoder,
    KLAutoencoder,
    VQAutoencoder,
    last_layer,
)
from ldm_jax.models.posteriors import DiagonalGaussian
from ldm_jax.models.quantizer import Quantized


class Regulariser(NamedTuple):
    """The loss term of a kind of first stage.

    Weights that are not in the config section `loss` are fields of the module, and part
    of the output of `reconstruct`.

    Attributes:
      loss: (second output of `reconstruct`, the section `loss` as LossOptions) ->
        (scalar, metrics of name -> scalar).
      reduction: Row of REDUCTIONS to use with it, "sum" or "mean".
    """

    loss: Callable
    reduction: str


class Codebook(NamedTuple):
    """The codebook of a kind, for moving averages and restarts in training.

    The second output of `reconstruct` of such a kind is a `Quantized`.

    Attributes:
      shape: Module -> (number of codes, channels of a code).
      path: Path of the codes [num_codes, c] in the parameters.
      is_among_latents: Module -> whether a code may be set to a latent.
    """

    shape: Callable
    path: tuple[str, ...]
    is_among_latents: Callable


class Measures(NamedTuple):
    """Metrics of a kind on held-out images, besides the reconstruction errors.

    Attributes:
      rows: (module, params, posterior) -> dict of name -> array [B] or [B, n].
      summarize: Dict of means over all images, which includes those of `rows` -> dict
        of metrics, name -> scalar.
      units: Name of a metric -> its unit, for tables; names may be missing.
    """

    rows: Callable = lambda module, params, posterior: {}
    summarize: Callable = dict
    units: Mapping = {}


class FirstStageKind(NamedTuple):
    """Everything about one kind of first stage.

    Attributes:
      module: Its module class, which no other kind has.
      latent_parts: Names of the parameters that determine the latents: two first stages
        with equal ones give the same latents. `train.freeze=("latents",)` freezes them.
      encoder_parts: Those of `latent_parts` that decoding does not need.
      decoder_parts: Names of the parameters that only decode: all the others.
      regulariser: Its term of the loss; None for a kind without parameters to train.
      last_layer: (module, params, third output of `reconstruct`) -> (function, kernel):
        the last layer of the decoder as a function of only its kernel, for the adaptive
        weight of the adversarial loss.
      codebook: Its codebook; None if it has none.
      measures: Its additional metrics in evaluation.
    """

    module: type[nn.Module]
    latent_parts: tuple[str, ...] = ()
    encoder_parts: tuple[str, ...] = ()
    decoder_parts: tuple[str, ...] = ()
    regulariser: Regulariser | None = None
    last_layer: Callable = last_layer
    codebook: Codebook | None = None
    measures: Measures = Measures()


def row_of(module: nn.Module) -> FirstStageKind:
    """Finds the row of a first stage.

    Args:
      module: Module from `build.make_first_stage`.

    Returns:
      Row of FIRST_STAGES.
    """
    return FIRST_STAGES[name_of(module)]


def latent_parts_of(module: nn.Module) -> tuple[str, ...]:
    """Lists the parameters that determine the latents of a first stage.

    Args:
      module: Module from `build.make_first_stage`.

    Returns:
      The `latent_parts` of its row that the module has.
    """
    parts = row_of(module).latent_parts
    if getattr(module, "quant_conv", True):
        return parts
    return tuple(part for part in parts if part not in _QUANT_CONVS)


def name_of(module: nn.Module) -> str:
    """Finds the name of a first stage's kind, as used in configs.

    Args:
      module: Module from `build.make_first_stage`.

    Returns:
      Key of FIRST_STAGES.

    Raises:
      ValueError: If no row has such a module.
    """
    for name, row in FIRST_STAGES.items():
        if row.module is type(module):
            return name
    raise ValueError(f"no row of FIRST_STAGES has the module {type(module).__name__}")


def _kl_loss(posterior: DiagonalGaussian, options: Any) -> tuple[Array, dict]:
    divergence = jnp.mean(posterior.kl())
    return options.kl_weight * divergence, {"kl_loss": divergence}


def _codebook_loss(quantized: Quantized, options: Any) -> tuple[Array, dict]:
    """The quantiser's loss in either form (see `LossOptions.codebook_legacy`)."""
    beta = options.codebook_beta
    weights = {"commitment": beta, "codebook": 1.0, "divergence": 1.0}
    if options.codebook_legacy:
        weights |= {"commitment": 1.0, "codebook": beta}
    if options.codebook_ema_decay:
        weights["codebook"] = 0.0
    losses = quantized.losses
    weight = options.codebook_weight
    if weight is None:
        weight = 5e-4 if "divergence" in losses else 1.0
    total = weight * sum(weights[name] * value for name, value in losses.items())
    return total, {f"{name}_loss": value for name, value in losses.items()}


def _fractions_of_codes(module, params, posterior):
    """Fraction of an image's latents that each code was assigned, [B, num_codes]."""
    indices = module.apply({"params": params}, posterior.mode(), method="code_indices")
    return {"codes": quantizer.fractions_of_codes(indices, module.num_codes)}


def _use_of_codes(means):
    """Replaces the fractions of the codes by usage and perplexity."""
    means = dict(means)
    return means | quantizer.codebook_metrics(means.pop("codes"))


def _is_among_latents(module):
    return quantizer.QUANTIZERS[module.quantizer].is_among_latents


_QUANT_CONVS = ("to_moments", "to_latents")
_DECODER = ("from_latents", "decoder", "to_images")

# The kinds of first stages by the name that configs use.
FIRST_STAGES = {
    "kl": FirstStageKind(
        KLAutoencoder,
        latent_parts=("encoder", "to_moments"),
        encoder_parts=("encoder", "to_moments"),
        decoder_parts=_DECODER,
        regulariser=Regulariser(_kl_loss, "sum"),
        measures=Measures(
            rows=lambda module, params, posterior: {"kl": posterior.kl()},
            units={"kl": "nats per image"},
        ),
    ),
    "vq": FirstStageKind(
        VQAutoencoder,
        latent_parts=("encoder", "to_latents", "quantizer"),
        encoder_parts=("encoder", "to_latents"),
        decoder_parts=_DECODER,
        regulariser=Regulariser(_codebook_loss, "mean"),
        codebook=Codebook(
            shape=lambda module: (module.num_codes, module.embed_dim),
            path=("quantizer", "embedding"),
            is_among_latents=_is_among_latents,
        ),
        measures=Measures(
            rows=_fractions_of_codes,
            summarize=_use_of_codes,
            units={
                "codebook_usage": "of the codes",
                "codebook_perplexity": "codes",
            },
        ),
    ),
    "identity": FirstStageKind(IdentityAutoencoder),
}

# Used if a config section has no "kind".
DEFAULT_KIND = "kl"
