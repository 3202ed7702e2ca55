"""The first stage: an encoder, a regulariser of the latents, and a decoder.

Esser et al. 2021 (VQGAN); Rombach et al. 2022, Sec. 3.1 and App. G. KL and VQ differ
only in the regulariser: VQ quantises inside `decode`, so the second stage diffuses the
latents before quantisation. Latents here are not normalised; `latent_diffusion` scales
them to unit variance.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ldm_jax.annotations import Array, Float, Int, Key
from ldm_jax.models.checks import check_groups
from ldm_jax.models.coder import Decoder, Encoder
from ldm_jax.models.layers import conv, dense
from ldm_jax.models.operations.kernels import AUTO, check_kernel
from ldm_jax.models.posteriors import DiagonalGaussian, PointPosterior
from ldm_jax.models.quantizer import QUANTIZERS, Quantized

Images = Float[Array, "batch height width channels"]
Latents = Float[Array, "batch h w c"]


class Autoencoder(nn.Module):
    """Base class with encoder and decoder; subclasses add `encode` and the regulariser.

    Attributes:
      channels: Width of the finest level, a multiple of `norm_groups`.
      channel_mult: Width of every level over `channels`; each after the first halves
        height and width.
      num_res_blocks: ResBlocks per level of the encoder; the decoder has one more.
      z_channels: Channels of the encoder's output (of the mean).
      embed_dim: Channels of the latents.
      attention_factors: Downsampling factors at which attention follows ResBlocks.
      mid_attention: Whether the middle has attention.
      image_channels: Channels of the images.
      conv_resample: Change resolution with a convolution, not by repeating and pooling.
      tanh_output: Whether the decoder ends with a tanh.
      norm_groups: Groups of the norms. With one channel per group they remove an
        image's mean colour: narrow models need fewer groups than the published 32.
      dropout: Dropout rate in ResBlocks.
      quant_conv: Whether there are 1x1 convolutions between encoder, latents and
        decoder, as in the paper; SD 3 and Flux have none, and then `embed_dim` must be
        `z_channels`.
      remat: Recompute the blocks' activations in the backward pass to save memory.
      attention_kernel: See UNet.
      dtype: Compute type; parameters, norms, softmax and outputs are float32.
    """

    channels: int
    channel_mult: Sequence[int]
    num_res_blocks: int
    z_channels: int
    embed_dim: int
    attention_factors: Sequence[int] = ()
    mid_attention: bool = True
    image_channels: int = 3
    conv_resample: bool = True
    tanh_output: bool = False
    norm_groups: int = 32
    dropout: float = 0.0
    quant_conv: bool = True
    remat: bool = False
    attention_kernel: str = AUTO
    dtype: Any = jnp.float32

    encoder_outputs = 1  # in units of z_channels

    def __post_init__(self):
        super().__post_init__()
        check_kernel(self.attention_kernel)
        if not self.quant_conv and self.embed_dim != self.z_channels:
            raise ValueError(
                f"embed_dim={self.embed_dim} must be z_channels={self.z_channels} "
                "where quant_conv=False"
            )

    @nn.nowrap
    def check_fields(self) -> None:
        """Checks fields that would otherwise fail when the network is called.

        Raises:
          ValueError: If widths do not divide into the groups of the norms.
        """
        check_groups(self.channels, self.channel_mult, self.norm_groups)

    def setup(self) -> None:
        """Makes the layers."""
        names = (
            "channels channel_mult num_res_blocks attention_factors mid_attention "
            "conv_resample norm_groups dropout remat attention_kernel dtype"
        ).split()
        shared = {name: getattr(self, name) for name in names}
        features = self.encoder_outputs * self.z_channels
        self.encoder = Encoder(**shared, out_channels=features)
        self.decoder = Decoder(**shared)
        if self.quant_conv:
            self.from_latents = dense(self.z_channels, dtype=self.dtype)
        self.to_images = conv(self.image_channels, dtype=self.dtype)

    @property
    def downsampling_factor(self) -> int:
        """Ratio of image height to latent height."""
        return 2 ** (len(self.channel_mult) - 1)

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return self.embed_dim

    def encode(self, images: Images, train: bool = False) -> Any:
        """Maps images to a posterior over latents; implemented by subclasses.

        Args:
          images: [B, H, W, image_channels] in [-1, 1].
          train: Whether dropout is on.

        Returns:
          A posterior, see `models.posteriors`.

        Raises:
          NotImplementedError: If the subclass does not implement it.
        """
        raise NotImplementedError

    def decode(self, latents: Latents, train: bool = False) -> Images:
        """Maps latents to images.

        Args:
          latents: [B, h, w, embed_dim].
          train: Whether dropout is on.

        Returns:
          float32 images [B, H, W, image_channels], about in [-1, 1], not clipped.
        """
        return self.features_to_images(self.decode_features(latents, train))

    def decode_features(self, latents: Latents, train: bool = False) -> Images:
        """Applies the decoder up to its last convolution.

        Args:
          latents: Latents from `regularise`, [B, h, w, embed_dim].
          train: Whether dropout is on.

        Returns:
          [B, H, W, channels].
        """
        if self.quant_conv:
            latents = self.from_latents(latents)
        return self.decoder(latents, train)

    def features_to_images(
        self, features: Float[Array, "batch height width features"]
    ) -> Images:
        """Applies the decoder's last convolution.

        Args:
          features: Output of `decode_features`, [B, H, W, channels].

        Returns:
          float32 images [B, H, W, image_channels].
        """
        images = self.to_images(features).astype(jnp.float32)
        return jnp.tanh(images) if self.tanh_output else images

    def reconstruct(
        self,
        images: Images,
        rng: Key[Array, ""] | None = None,
        train: bool = False,
        temperature: float | Float[Array, ""] = 1.0,
    ) -> tuple[Images, Any, Float[Array, "batch height width features"]]:
        """Encodes, samples latents and decodes, for training.

        Args:
          images: [B, H, W, image_channels] in [-1, 1].
          rng: Key to sample the posterior; None for its mode.
          train: Whether dropout is on.
          temperature: Temperature of quantisers that sample codes; others ignore it.

        Returns:
          (reconstructions, regularised, features): images like the input, the input of
          the regulariser's loss (the posterior; `Quantized` for VQ), and the input of
          the last convolution, for the adaptive weight of the adversarial loss.
        """
        posterior = self.encode(images, train)
        latents, regularised = self.regularise(posterior, rng, temperature)
        features = self.decode_features(latents, train)
        return self.features_to_images(features), regularised, features

    @nn.nowrap
    def regularise(
        self,
        posterior: Any,
        rng: Key[Array, ""] | None = None,
        temperature: float | Float[Array, ""] = 1.0,
    ) -> tuple[Latents, Any]:
        """Samples the latents that the decoder is trained on.

        Args:
          posterior: Output of `encode`.
          rng: Key of the sample, a scalar; None for the mode.
          temperature: See `reconstruct`.

        Returns:
          (latents [B, h, w, embed_dim], input of the regulariser's loss).
        """
        del temperature
        latents = posterior.mode() if rng is None else posterior.sample(rng)
        return latents, posterior

    def __call__(
        self,
        images: Images,
        rng: Key[Array, ""] | None = None,
        train: bool = False,
    ) -> tuple[Images, Any]:
        """Encodes, samples latents and decodes.

        Args:
          images: [B, H, W, image_channels] in [-1, 1].
          rng: Key to sample the posterior; None for its mode.
          train: Whether dropout is on.

        Returns:
          (reconstructions, regularised) of `reconstruct`.
        """
        return self.reconstruct(images, rng, train)[:2]

    @nn.nowrap
    def _check_size(self, images):
        height, width = images.shape[1:3]
        factor = self.downsampling_factor
        if height % factor or width % factor:
            raise ValueError(
                f"images of {height} x {width} do not halve evenly at "
                f"{len(self.channel_mult)} levels: both must be multiples of {factor}"
            )


class KLAutoencoder(Autoencoder):
    """An autoencoder with Gaussian latents, kept near standard normal by a KL loss."""

    encoder_outputs = 2

    def setup(self) -> None:
        """Makes the layers."""
        super().setup()
        if self.quant_conv:
            self.to_moments = dense(2 * self.embed_dim, dtype=self.dtype)

    def encode(self, images: Images, train: bool = False) -> DiagonalGaussian:
        """Maps images to the posterior over latents.

        Args:
          images: [B, H, W, image_channels] in [-1, 1].
          train: Whether dropout is on.

        Returns:
          DiagonalGaussian of [B, h, w, embed_dim].

        Raises:
          ValueError: If the size does not halve evenly at every level.
        """
        self._check_size(images)
        moments = self.encoder(images, train)
        if self.quant_conv:
            moments = self.to_moments(moments)
        mean, logvar = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        return DiagonalGaussian(mean, jnp.clip(logvar, -30.0, 20.0))


class VQAutoencoder(Autoencoder):
    """An autoencoder whose decoder gets codes of a learnt codebook (VQGAN).

    Its latents are those before quantisation. Fields as in `Autoencoder`, and:

    Attributes:
      num_codes: Size of the codebook.
      quantizer: Row of QUANTIZERS.
    """

    num_codes: int = 8192
    quantizer: str = "nearest"

    def __post_init__(self):
        super().__post_init__()
        if self.quantizer not in QUANTIZERS:
            rows = ", ".join(QUANTIZERS)
            raise ValueError(f"quantizer is {self.quantizer!r}: choose {rows}")

    def setup(self) -> None:
        """Makes the layers."""
        super().setup()
        if self.quant_conv:
            self.to_latents = dense(self.embed_dim, dtype=self.dtype)
        make = QUANTIZERS[self.quantizer]
        self.codebook = make(self.num_codes, self.embed_dim, name="quantizer")

    def encode(self, images: Images, train: bool = False) -> PointPosterior:
        """Maps images to latents before quantisation.

        Args:
          images: [B, H, W, image_channels] in [-1, 1].
          train: Whether dropout is on.

        Returns:
          PointPosterior of [B, h, w, embed_dim].

        Raises:
          ValueError: If the size does not halve evenly at every level.
        """
        self._check_size(images)
        latents = self.encoder(images, train)
        if self.quant_conv:
            latents = self.to_latents(latents)
        return PointPosterior(self.codebook.project(latents.astype(jnp.float32)))

    def decode(
        self, latents: Latents, train: bool = False, quantize: bool = True
    ) -> Images:
        """Maps latents to images.

        Args:
          latents: [B, h, w, embed_dim], before quantisation.
          train: Whether dropout is on.
          quantize: Whether to quantise them first; False if they already are.

        Returns:
          float32 images [B, H, W, image_channels], about in [-1, 1], not clipped. The
          gradient passes straight through the quantiser.
        """
        if quantize:
            codes = self.codes(self.code_indices(latents))
            # Adds only the gradient of the latents (straight-through).
            latents = codes + (latents - jax.lax.stop_gradient(latents))
        return super().decode(latents, train)

    def code_indices(self, latents: Latents) -> Int[Array, "batch h w"]:
        """Quantises latents.

        Args:
          latents: [B, h, w, embed_dim].

        Returns:
          Indices of their codes, int32 [B, h, w].
        """
        return self.codebook.indices(latents)

    def codes(self, indices: Int[Array, "batch h w"]) -> Latents:
        """Looks codes up in the codebook.

        Args:
          indices: int32 [B, h, w].

        Returns:
          [B, h, w, embed_dim].
        """
        return self.codebook.lookup(indices)

    def regularise(
        self,
        posterior: PointPosterior,
        rng: Key[Array, ""] | None = None,
        temperature: float | Float[Array, ""] = 1.0,
    ) -> tuple[Latents, Quantized]:
        """Quantises latents.

        Args:
          posterior: Output of `encode`.
          rng: Key of quantisers that sample codes, a scalar; None for the most likely
            codes.
          temperature: Temperature of quantisers that sample codes.

        Returns:
          (the codes [B, h, w, embed_dim], Quantized).
        """
        quantized = self.codebook(posterior.mode(), rng, temperature)
        return quantized.latents, quantized


class IdentityAutoencoder(nn.Module):
    """The identity as first stage: diffusion on pixels (f = 1 of the paper).

    Attributes:
      image_channels: Channels of the images, and thus of the latents.
    """

    image_channels: int = 3

    downsampling_factor = 1

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return self.image_channels

    def encode(self, images: Images, train: bool = False) -> PointPosterior:
        """Returns the images as latents.

        Args:
          images: [B, H, W, C].
          train: Unused.

        Returns:
          PointPosterior of the images themselves.
        """
        del train
        return PointPosterior(images.astype(jnp.float32))

    def decode(self, latents: Latents, train: bool = False) -> Images:
        """Returns the latents as images.

        Args:
          latents: [B, H, W, C].
          train: Unused.

        Returns:
          The latents themselves, float32.
        """
        del train
        return latents.astype(jnp.float32)

    def __call__(
        self,
        images: Images,
        rng: Key[Array, ""] | None = None,
        train: bool = False,
    ) -> tuple[Images, PointPosterior]:
        """Encodes and decodes.

        Args:
          images: [B, H, W, C].
          rng: Unused.
          train: Unused.

        Returns:
          (images, posterior).
        """
        del rng
        return self.decode(images), self.encode(images, train)


def last_layer(
    model: nn.Module,
    params: Mapping[str, Any],
    features: Float[Array, "batch height width features"],
) -> tuple[Callable, Float[Array, "..."]]:
    """Returns the decoder's last convolution as a function of only its kernel.

    Args:
      model: Autoencoder.
      params: Its parameters.
      features: The features that `reconstruct` returns, [B, H, W, channels].

    Returns:
      (function, kernel): the function maps a kernel to reconstructions. No gradient
      flows through either into `params` or `features`.
    """
    layer, features = jax.lax.stop_gradient((params["to_images"], features))

    def apply(kernel):
        variables = {"params": params | {"to_images": layer | {"kernel": kernel}}}
        return model.apply(variables, features, method="features_to_images")

    return apply, layer["kernel"]
