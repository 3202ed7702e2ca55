"""The first readable image of a set, which determines how the others are read."""

from ldm_jax.batches import Images
from ldm_jax.data.load_batch import MAX_FAILURES
from ldm_jax.errors import DataError
from ldm_jax.images import has_size
from ldm_jax.sampling.sample_pixels import SetValues


def none_can_be_read(count: int, first: str) -> DataError:
    """Makes the error for a set none of whose first images can be read.

    Args:
      count: Number of images of the set. At most MAX_FAILURES were tried, as every
        process reads each of them whole, one after the other.
      first: Name of the first image.

    Returns:
      The error.
    """
    which = f"the {count}" if count <= MAX_FAILURES else f"the first {MAX_FAILURES}"
    return DataError(f"none of {which} images can be read; the first is {first}")


def look_at_first(images: Images, values: SetValues, skip_unreadable: bool) -> None:
    """Shows `values` the first image of a set whose header gives its size.

    Args:
      images: Opened data.
      values: Finds the range of values of the set.
      skip_unreadable: Whether images that cannot be read are left out; otherwise the
        first of them ends the measurement.

    Raises:
      ConfigError: If nothing determines which of its values are black and white.
      DataError: If none of the first MAX_FAILURES images can be read.
    """
    for number in range(min(images.count, MAX_FAILURES)):
        data = images.encoded(number)
        if has_size(data):
            values.look(data, images.describe(number))
            return
    if skip_unreadable and images.count > MAX_FAILURES:
        raise none_can_be_read(images.count, images.describe(0))
