"""What seeds become: keys of JAX, and the shorter seeds of other libraries.

All 64 bits of a seed count. Up to 2**32 everything is as JAX and Grain have it.
"""

from typing import Any

import numpy as np

_BITS = 2**32


def make_key(seed: int) -> Any:
    """Makes the key of a seed.

    Without 64-bit types `jax.random.key` passes over the upper half of a seed.

    Args:
      seed: Whole number in [0, 2**64).

    Returns:
      Typed key, a scalar: that of `jax.random.key` where it takes seeds of 64 bits.
    """
    # Imported here: the processes that load data know nothing of JAX.
    import jax

    upper, lower = divmod(seed, _BITS)
    key = jax.random.key(lower)
    if not upper:
        return key
    words = jax.random.key_data(key)
    return jax.random.wrap_key_data(words.at[0].set(np.uint32(upper)))


def to_32_bits(seed: int) -> int:
    """Shortens a seed for libraries whose seeds have 32 bits.

    Args:
      seed: Whole number in [0, 2**64).

    Returns:
      Whole number in [0, 2**32): the seed where it is less, else a hash of it.
    """
    if seed < _BITS:
        return seed
    return int(np.random.SeedSequence(seed).generate_state(1)[0])


def sample_keys(seed: int, index: Any) -> Any:
    """Makes the keys of samples: sample k depends on the seed and k alone.

    Args:
      seed: Whole number in [0, 2**64).
      index: Numbers of the samples, a JAX array, int32 [B].

    Returns:
      Typed keys [B].
    """
    return fold_in(make_key(seed), index)


def fold_in(key: Any, index: Any) -> Any:
    """Makes the keys of samples from that of their seed.

    Args:
      key: Typed key, a scalar, as `make_key` gives it.
      index: Numbers of the samples, a JAX array, int32 [B].

    Returns:
      Typed keys [B].
    """
    import jax

    return jax.vmap(lambda k: jax.random.fold_in(key, k))(index)
