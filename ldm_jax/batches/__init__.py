"""A run's images as global batches on the devices."""

from ldm_jax.batches.images_in_order import Batch, Images
from ldm_jax.batches.run_data import Data

__all__ = ["Batch", "Data", "Images"]
