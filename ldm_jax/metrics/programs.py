"""A network of features on the devices, as one compiled program."""

import jax
from jax.sharding import Mesh

from ldm_jax import sharding
from ldm_jax.annotations import Array, Bool, Float, Int, UInt8
from ldm_jax.errors import ConfigError
from ldm_jax.metrics.distances.clip_score import COSINE, EMBEDDING, caption_cosine
from ldm_jax.metrics.features import load_network


class FeatureProgram:
    """Computes the features of batches of images.

    Attributes:
      network: The loaded network.
      widths: Each tap that is computed -> number of its features.
    """

    def __init__(
        self, name: str, path: str | None, taps: tuple[str, ...], mesh: Mesh
    ) -> None:
        """Loads the network and puts it on the devices.

        Args:
          name: Row of FEATURES.
          path: Its file of weights, or None for random ones.
          taps: What is computed: taps, or COSINE for what they make with captions.
          mesh: Mesh of the batches.

        Raises:
          ConfigError: If there is no such network, its weights cannot be read, or they
            have no text encoder where captions are compared.
        """
        self.network = network = load_network(name, path)
        row, self._wants_captions = network.row, COSINE in taps
        if self._wants_captions and row.embed_text is None:
            raise ConfigError(
                f"clip_score needs a text encoder, which {network.record['weights']} "
                f"({row.title}) does not have; give a file with both: {row.where}"
            )
        self.widths = {
            tap: 1 if tap == COSINE else row.widths[tap] for tap in sorted(taps)
        }
        asked = {EMBEDDING if tap == COSINE else tap for tap in taps}
        asked = tuple(sorted(asked))
        shardings = sharding.tree_shardings(network.params, mesh)
        self._params = sharding.put_tree(network.params, shardings)

        def features(params, images, mask, captions):
            found = dict(row.apply(params, images, asked))
            if COSINE in taps:
                texts = row.embed_text(params, captions)
                found[COSINE] = caption_cosine(found[EMBEDDING], texts)
            # The mask comes along, so that each process has all of it.
            return {tap: found[tap] for tap in taps}, mask

        self._features = jax.jit(features, out_shardings=sharding.replicated(mesh))

    def __call__(
        self,
        images: UInt8[Array, "batch h w c"],
        mask: Bool[Array, " batch"],
        captions: Int[Array, "batch length"] | None,
    ) -> tuple[dict[str, Float[Array, "batch _features"]], Bool[Array, " batch"]]:
        """Starts to compute the features of a batch.

        Args:
          images: Global array, uint8 [B, H, W, C].
          mask: Global array, bool [B].
          captions: Global array of token ids [B, L], or None.

        Returns:
          (tap -> float32 [B, D], mask), whole on every device.

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
        return self._features(self._params, images, mask, captions)
