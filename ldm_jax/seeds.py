"""Converts 64-bit seeds to JAX keys and to the 32-bit seeds of other libraries.

All 64 bits of a seed count. Seeds below 2**32 give the same as in JAX and Grain.
"""

from typing import Any

import numpy as np

_BITS = 2**32


def make_key(seed: int) -> Any:
    """Makes the JAX key of a seed.

    Without 64-bit types `jax.random.key` ignores the upper half of a seed.

    Args:
      seed: Whole number in [0, 2**64).

    Returns:
      Typed key, a scalar: the same as `jax.random.key` gives with 64-bit types.
    """
    # Imported here: the processes that load data do not import JAX.
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
      Whole number in [0, 2**32): the seed if it is below 2**32, else a hash of it.
    """
    if seed < _BITS:
        return seed
    return int(np.random.SeedSequence(seed).generate_state(1)[0])


def sample_keys(seed: int, index: Any) -> Any:
    """Makes the keys of samples; the key of sample k depends only on the seed and k.

    Args:
      seed: Whole number in [0, 2**64).
      index: Indices of the samples, a JAX array, int32 [B].

    Returns:
      Typed keys [B].
    """
    return fold_in(make_key(seed), index)


def fold_in(key: Any, index: Any) -> Any:
    """Makes the keys of samples from the key of their seed.

    Args:
      key: Typed key, a scalar, from `make_key`.
      index: Indices of the samples, a JAX array, int32 [B].

    Returns:
      Typed keys [B].
    """
    import jax

    return jax.vmap(lambda k: jax.random.fold_in(key, k))(index)
