"""A feature network on the devices, as one compiled program."""

import numpy as np
from jax.sharding import Mesh

from ldm_jax import sharding
from ldm_jax.annotations import Array, Bool, Float, Int, UInt8
from ldm_jax.errors import ConfigError, DataError
from ldm_jax.metrics.features import load_network
from ldm_jax.metrics.features.clip_weights import EMBEDDING
from ldm_jax.metrics.set_metrics.clip_score import COSINE, caption_cosine


class FeatureProgram:
    """Computes the features of batches of images.

    Attributes:
      network: The loaded network.
      widths: Tap that is computed -> number of its features.
    """

    def __init__(
        self, name: str, path: str | None, taps: tuple[str, ...], mesh: Mesh
    ) -> None:
        """Loads the network and puts it on the devices.

        Args:
          name: Row of FEATURES.
          path: Its file of weights, or None for random ones.
          taps: Taps to compute; COSINE stands for the cosine of images and captions.
          mesh: Mesh of the batches.

        Raises:
          ConfigError: If there is no such network, its weights cannot be read, or they
            lack the text encoder that COSINE needs.
        """
        self.network = network = load_network(name, path)
        row = network.row
        if COSINE in taps and row.embed_text is None:
            raise ConfigError(
                f"clip_score needs a text encoder, which {network.record['weights']} "
                f"({row.title}) does not have; give a file with both: {row.where}"
            )
        shardings = sharding.tree_shardings(network.params, mesh)
        self._params = sharding.put_tree(network.params, shardings)
        self._mesh = mesh
        self._compile(taps)

    def of_taps(self, taps: tuple[str, ...]) -> "FeatureProgram":
        """Returns a program that computes some of these taps.

        Args:
          taps: Some of the taps.

        Returns:
          This program, with all its taps; or, if it needs captions and `taps` do not,
          one without captions that shares the weights.
        """
        if COSINE in taps or not self._wants_captions:
            return self
        other = object.__new__(FeatureProgram)
        vars(other).update(vars(self))
        other._compile(taps)
        return other

    def _compile(self, taps):
        """Makes the program, which is compiled at the first call."""
        row, self._wants_captions = self.network.row, COSINE in taps
        self.widths = {
            tap: 1 if tap == COSINE else row.widths[tap] for tap in sorted(taps)
        }
        asked = {EMBEDDING if tap == COSINE else tap for tap in taps}
        asked = tuple(sorted(asked))

        def features(params, images, mask, captions):
            found = dict(row.apply(params, images, asked))
            if COSINE in taps:
                texts = row.embed_text(params, captions)
                found[COSINE] = caption_cosine(found[EMBEDDING], texts)
            # The mask is returned too, so that each process has all of it.
            return {tap: found[tap] for tap in taps}, mask

        shardings = sharding.replicated(self._mesh)
        self._features = sharding.jit(features, self._mesh, out_shardings=shardings)

    def __call__(
        self,
        images: UInt8[Array, "batch h w c"],
        mask: Bool[Array, " batch"],
        captions: Int[Array, "batch length"] | None,
    ) -> tuple[dict[str, Float[Array, "batch _features"]], Bool[Array, " batch"]]:
        """Starts computing the features of a batch.

        Args:
          images: Global array, uint8 [B, H, W, C].
          mask: Global array, bool [B].
          captions: Global array of token ids [B, L], or None.

        Returns:
          (tap -> float32 [B, D], mask), replicated on every device.

        Raises:
          ConfigError: If captions are needed and not given.
        """
        if not self._wants_captions:
            captions = None
        elif captions is None:
            raise ConfigError(
                "clip_score is of images and their captions, and these have none: "
                "measure a model that draws from captions, or leave it out"
            )
        else:
            self._check_ids(captions)
        return self._features(self._params, images, mask, captions)

    def _check_ids(self, captions):
        """Checks the ids: one beyond the vocabulary would be taken for another one."""
        largest = max(int(shard.data.max()) for shard in captions.addressable_shards)
        known = self.network.row.vocab_size
        if known is not None and largest >= known:
            raise ConfigError(
                f"--tokenizer gives the id {largest}, but the text tower of "
                f"{self.network.record['weights']} knows {known:,}: use the tokenizer "
                "that it was trained with"
            )


def require_finite(
    rows: Float[np.ndarray, "images features"], network: str, tap: str
) -> None:
    """Checks that features are finite, as metrics of other ones would not be.

    Args:
      rows: Features of images that count, [N, D].
      network: Row of FEATURES, for the message.
      tap: Its tap, likewise.

    Raises:
      DataError: If one is not finite.
    """
    bad = int((~np.isfinite(rows).all(axis=1)).sum())
    if bad:
        raise DataError(
            f"features of {bad} of {len(rows)} images are not finite numbers (network "
            f"{network}, tap {tap}): its weights are damaged or in another layout"
        )
