"""The first stage: an encoder, a regulariser of the latents, and a decoder.

Esser et al. 2021 (VQGAN); Rombach et al. 2022, Sec. 3.1 and App. G. KL and VQ differ in
the regulariser alone: VQ quantises inside `decode`, so the second stage diffuses the
latents before quantisation. Latents here are the autoencoder's own; `latent_diffusion`
scales them to unit variance.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from ldm_jax.models.attention import AttentionBlock
from ldm_jax.models.layers import (
    Downsample,
    GroupNorm,
    ResBlock,
    Upsample,
    conv,
    dense,
)
from ldm_jax.models.quantizer import QUANTIZERS


@struct.dataclass
class DiagonalGaussian:
    """A Gaussian posterior of independent latents.

    Attributes:
      mean: float32 [B, h, w, c].
      logvar: Log-variance, float32 [B, h, w, c].
    """

    mean: jax.Array
    logvar: jax.Array

    def sample(self, rng=None, noise=None):
        """Draws [B, h, w, c] with a key, or from given standard normal noise."""
        if noise is None:
            noise = jax.random.normal(rng, self.mean.shape)
        return self.mean + jnp.exp(0.5 * self.logvar) * noise

    def mode(self):
        """Returns the most likely latents [B, h, w, c]."""
        return self.mean

    def kl(self):
        """Returns the divergence from a standard normal, in nats per example [B]."""
        terms = jnp.square(self.mean) + jnp.exp(self.logvar) - 1.0 - self.logvar
        return 0.5 * jnp.sum(terms, axis=(1, 2, 3))

    def nll(self, latents):
        """Returns -log p(latents) in nats per example [B]."""
        squares = jnp.square(latents - self.mean) * jnp.exp(-self.logvar)
        terms = jnp.log(2 * jnp.pi) + self.logvar + squares
        return 0.5 * jnp.sum(terms, axis=(1, 2, 3))


@struct.dataclass
class PointPosterior:
    """The posterior of an encoder that is certain: one value.

    Attributes:
      latents: float32 [B, h, w, c].
    """

    latents: jax.Array

    def sample(self, rng=None, noise=None):
        """Returns the latents [B, h, w, c]; nothing is drawn."""
        del rng, noise
        return self.latents

    def mode(self):
        """Returns the latents [B, h, w, c]."""
        return self.latents


class _Coder(nn.Module):
    """What encoder and decoder share: their fields and how blocks are made of them."""

    channels: int
    channel_mult: Sequence[int]
    num_res_blocks: int
    attention_factors: Sequence[int]
    mid_attention: bool
    conv_resample: bool
    norm_groups: int
    dropout: float
    remat: bool
    dtype: Any

    def _res_block(self, name, features, x, train):
        make = nn.remat(ResBlock, static_argnums=(3,)) if self.remat else ResBlock
        block = make(
            features,
            norm_groups=self.norm_groups,
            epsilon=1e-6,
            dropout=self.dropout,
            dtype=self.dtype,
            name=name,
        )
        return block(x, None, train)

    def _attention(self, name, x):
        make = nn.remat(AttentionBlock) if self.remat else AttentionBlock
        groups = self.norm_groups
        return make(norm_groups=groups, epsilon=1e-6, dtype=self.dtype, name=name)(x)

    def _middle(self, x, train):
        x = self._res_block("middle_res_0", x.shape[-1], x, train)
        if self.mid_attention:
            x = self._attention("middle_attention", x)
        return self._res_block("middle_res_1", x.shape[-1], x, train)

    def _level(self, direction, level, num_blocks, x, train):
        for i in range(num_blocks):
            features = self.channels * self.channel_mult[level]
            x = self._res_block(f"{direction}_{level}_res_{i}", features, x, train)
            if 2**level in self.attention_factors:
                x = self._attention(f"{direction}_{level}_attention_{i}", x)
        return x

    def _norm_out(self, x):
        return GroupNorm(self.norm_groups, 1e-6, True, self.dtype, name="norm_out")(x)


class Encoder(_Coder):
    """Images [B, H, W, C] to features [B, h, w, out_channels]."""

    out_channels: int = 0

    @nn.compact
    def __call__(self, x, train=False):
        """Applies the encoder; `train` makes dropout live."""
        x = conv(self.channels, dtype=self.dtype, name="conv_in")(x)
        last = len(self.channel_mult) - 1
        for level in range(last + 1):
            x = self._level("down", level, self.num_res_blocks, x, train)
            if level != last:
                x = Downsample(
                    self.conv_resample,
                    padding=(0, 1),
                    dtype=self.dtype,
                    name=f"down_{level}_resample",
                )(x)
        x = self._norm_out(self._middle(x, train))
        return conv(self.out_channels, dtype=self.dtype, name="conv_out")(x)


class Decoder(_Coder):
    """Features [B, h, w, z] to the last convolution's input [B, H, W, channels]."""

    @nn.compact
    def __call__(self, x, train=False):
        """Applies the decoder; `train` makes dropout live."""
        width = self.channels * self.channel_mult[-1]
        x = conv(width, dtype=self.dtype, name="conv_in")(x)
        x = self._middle(x, train)
        for level in reversed(range(len(self.channel_mult))):
            x = self._level("up", level, self.num_res_blocks + 1, x, train)
            if level:
                x = Upsample(
                    self.conv_resample, dtype=self.dtype, name=f"up_{level}_resample"
                )(x)
        return self._norm_out(x)


class Autoencoder(nn.Module):
    """Encoder and decoder; a subclass adds `encode` and what `decode` undoes of it.

    Attributes:
      channels: Width of the finest level, a multiple of `norm_groups`.
      channel_mult: Width of every level over `channels`; each after the first halves
        height and width.
      num_res_blocks: ResBlocks of a level of the encoder; the decoder has one more.
      z_channels: Channels of the encoder's output (of the mean).
      embed_dim: Channels of the latents.
      attention_factors: Downsampling factors at which attention follows ResBlocks.
      mid_attention: Whether the middle has attention.
      image_channels: Channels of the images.
      conv_resample: Change resolution with a convolution, not by repeating and pooling.
      tanh_output: Whether a tanh ends the decoder.
      norm_groups: Groups of the norms. One channel per group takes an image's mean
        colour away: narrow models want fewer groups than the published 32.
      dropout: Rate in ResBlocks.
      remat: Recompute the blocks' activations in the backward pass to save memory.
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
    remat: bool = False
    dtype: Any = jnp.float32

    encoder_outputs = 1  # in units of z_channels

    def setup(self):
        """Makes the parts."""
        names = (
            "channels channel_mult num_res_blocks attention_factors mid_attention "
            "conv_resample norm_groups dropout remat dtype"
        ).split()
        shared = {name: getattr(self, name) for name in names}
        features = self.encoder_outputs * self.z_channels
        self.encoder = Encoder(**shared, out_channels=features)
        self.decoder = Decoder(**shared)
        self.from_latents = dense(self.z_channels, dtype=self.dtype)
        self.to_images = conv(self.image_channels, dtype=self.dtype)

    @property
    def downsampling_factor(self):
        """Height of the images over height of the latents."""
        return 2 ** (len(self.channel_mult) - 1)

    @property
    def latent_channels(self):
        """Channels of the latents."""
        return self.embed_dim

    def encode(self, images, train=False):
        """Maps images to a posterior over latents."""
        raise NotImplementedError

    def decode(self, latents, train=False):
        """Maps latents to images.

        Args:
          latents: [B, h, w, embed_dim].
          train: Whether dropout is live.

        Returns:
          float32 images [B, H, W, image_channels], about [-1, 1], not clipped.
        """
        return self.features_to_images(self.decode_features(latents, train))

    def decode_features(self, latents, train=False):
        """The decoder up to its last convolution: [B, H, W, channels]."""
        return self.decoder(self.from_latents(latents), train)

    def features_to_images(self, features):
        """The decoder's last convolution: float32 images [B, H, W, image_channels]."""
        images = self.to_images(features).astype(jnp.float32)
        return jnp.tanh(images) if self.tanh_output else images

    def reconstruct(self, images, rng=None, train=False, temperature=1.0):
        """Encodes, draws latents and decodes, for training.

        Args:
          images: [B, H, W, image_channels] in [-1, 1].
          rng: Key of the posterior's sample; None takes the mode.
          train: Whether dropout is live.
          temperature: Of quantisers that draw codes; others ignore it.

        Returns:
          (reconstructions, regularised, features): images like the input, what the
          regulariser's loss needs (the posterior; `Quantized` for VQ), and the input of
          the last convolution, which the adaptive weight of the adversarial loss needs.
        """
        posterior = self.encode(images, train)
        latents, regularised = self.regularise(posterior, rng, temperature)
        features = self.decode_features(latents, train)
        return self.features_to_images(features), regularised, features

    @nn.nowrap
    def regularise(self, posterior, rng=None, temperature=1.0):
        """Draws what the decoder is trained on.

        Args:
          posterior: What `encode` gives.
          rng: Key of the sample; None takes the mode.
          temperature: See `reconstruct`.

        Returns:
          (latents, what the regulariser's loss needs).
        """
        del temperature
        latents = posterior.mode() if rng is None else posterior.sample(rng)
        return latents, posterior

    def __call__(self, images, rng=None, train=False):
        """Returns the first two of `reconstruct`."""
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
    """An autoencoder with Gaussian latents, held near a standard normal by its loss."""

    encoder_outputs = 2

    def setup(self):
        """Makes the parts."""
        super().setup()
        self.to_moments = dense(2 * self.embed_dim, dtype=self.dtype)

    def encode(self, images, train=False):
        """Maps images to the posterior over latents.

        Args:
          images: [B, H, W, image_channels] in [-1, 1].
          train: Whether dropout is live.

        Returns:
          DiagonalGaussian of [B, h, w, embed_dim].

        Raises:
          ValueError: If the size does not halve evenly at every level.
        """
        self._check_size(images)
        moments = self.to_moments(self.encoder(images, train)).astype(jnp.float32)
        mean, logvar = jnp.split(moments, 2, axis=-1)
        return DiagonalGaussian(mean, jnp.clip(logvar, -30.0, 20.0))


class VQAutoencoder(Autoencoder):
    """An autoencoder whose decoder sees codes of a learnt codebook (VQGAN).

    Its latents are those before quantisation. As `Autoencoder`, and:

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

    def setup(self):
        """Makes the parts."""
        super().setup()
        self.to_latents = dense(self.embed_dim, dtype=self.dtype)
        make = QUANTIZERS[self.quantizer]
        self.codebook = make(self.num_codes, self.embed_dim, name="quantizer")

    def encode(self, images, train=False):
        """Maps images to latents before quantisation.

        Args:
          images: [B, H, W, image_channels] in [-1, 1].
          train: Whether dropout is live.

        Returns:
          PointPosterior of [B, h, w, embed_dim].

        Raises:
          ValueError: If the size does not halve evenly at every level.
        """
        self._check_size(images)
        latents = self.to_latents(self.encoder(images, train)).astype(jnp.float32)
        return PointPosterior(self.codebook.project(latents))

    def decode(self, latents, train=False, quantize=True):
        """Maps latents to images.

        Args:
          latents: [B, h, w, embed_dim], before quantisation.
          train: Whether dropout is live.
          quantize: Whether they are quantised first; False for those that are.

        Returns:
          float32 images [B, H, W, image_channels], about [-1, 1], not clipped. Their
          gradient passes the quantiser as if it were not there.
        """
        if quantize:
            codes = self.codes(self.code_indices(latents))
            # Adds nothing but the gradient of the latents (straight through).
            latents = codes + (latents - jax.lax.stop_gradient(latents))
        return super().decode(latents, train)

    def code_indices(self, latents):
        """Returns the nearest codes of latents [B, h, w, c], int32 [B, h, w]."""
        return self.codebook.indices(latents)

    def codes(self, indices):
        """Looks indices [B, h, w] up in the codebook: latents [B, h, w, c]."""
        return self.codebook.lookup(indices)

    def regularise(self, posterior, rng=None, temperature=1.0):
        """Quantises; returns (the codes, `Quantized`)."""
        quantized = self.codebook(posterior.mode(), rng, temperature)
        return quantized.latents, quantized


class IdentityAutoencoder(nn.Module):
    """The first stage that does nothing: diffusion on pixels (f 1 of the paper).

    Attributes:
      image_channels: Channels of the images, and so of the latents.
    """

    image_channels: int = 3

    downsampling_factor = 1

    @property
    def latent_channels(self):
        """Channels of the latents."""
        return self.image_channels

    def encode(self, images, train=False):
        """Returns a PointPosterior of the images [B, H, W, C] themselves."""
        del train
        return PointPosterior(images.astype(jnp.float32))

    def decode(self, latents, train=False):
        """Returns the latents [B, H, W, C] themselves."""
        del train
        return latents.astype(jnp.float32)

    def __call__(self, images, rng=None, train=False):
        """Returns (images, posterior)."""
        del rng
        return self.decode(images), self.encode(images, train)


def last_layer(model, params, features):
    """The decoder's last convolution as a function of its kernel alone.

    Args:
      model: Autoencoder.
      params: Its parameters.
      features: What `reconstruct` gives beside the reconstructions.

    Returns:
      (function, kernel): the function maps a kernel to reconstructions. No gradient
      flows through either into `params` or `features`.
    """
    layer, features = jax.lax.stop_gradient((params["to_images"], features))

    def apply(kernel):
        variables = {"params": params | {"to_images": layer | {"kernel": kernel}}}
        return model.apply(variables, features, method="features_to_images")

    return apply, layer["kernel"]
