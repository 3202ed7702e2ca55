"""The first image of a set that can be read, which says what the others are."""

from ldm_jax.batches import Images
from ldm_jax.data.load_batch import MAX_FAILURES
from ldm_jax.errors import DataError
from ldm_jax.images import has_size
from ldm_jax.sampling.sample_pixels import SetValues


def none_can_be_read(count: int, first: str) -> DataError:
    """Makes the error of a set whose first images are all junk.

    Args:
      count: Images of the set, of which at most MAX_FAILURES were tried: each is read
        whole, one after the other, by every process.
      first: What the first one is called.

    Returns:
      The error.
    """
    which = f"the {count}" if count <= MAX_FAILURES else f"the first {MAX_FAILURES}"
    return DataError(f"none of {which} images can be read; the first is {first}")


def look_at_first(images: Images, values: SetValues, skip_unreadable: bool) -> None:
    """Looks at the first image of a set that says how large it is.

    Args:
      images: Opened data.
      values: What looks.
      skip_unreadable: Whether images that cannot be read are left out; otherwise the
        first of them ends the measurement.

    Raises:
      ConfigError: If nothing says which of its values are black and white.
      DataError: If none of many first images can be read.
    """
    for number in range(min(images.count, MAX_FAILURES)):
        data = images.encoded(number)
        if has_size(data):
            values.look(data, images.describe(number))
            return
    if skip_unreadable and images.count > MAX_FAILURES:
        raise none_can_be_read(images.count, images.describe(0))
