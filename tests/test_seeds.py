"""All 64 bits of a seed count, and up to 32 everything is as it was."""

import jax
import numpy as np
import pytest

from ldm_jax import ranges
from ldm_jax.errors import ConfigError
from ldm_jax.sampling import RunOptions
from ldm_jax.seeds import make_key, to_32_bits

LARGE = (2**32, 2**32 + 1, 2**63, 2**64 - 1)


def _words(key):
    return np.asarray(jax.random.key_data(key)).tolist()


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1])
def test_small_seeds_are_those_of_jax_and_grain(seed):
    assert _words(make_key(seed)) == _words(jax.random.key(seed)) == [0, seed]
    assert to_32_bits(seed) == seed


def test_large_seeds_keep_all_their_bits():
    for seed in LARGE:
        assert _words(make_key(seed)) == list(divmod(seed, 2**32))
        assert _words(jax.jit(make_key, static_argnums=0)(seed)) == _words(
            make_key(seed)
        )
        assert 0 <= to_32_bits(seed) < 2**32
    assert len({to_32_bits(seed) for seed in (0, 1, *LARGE)}) == 6


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_others_are_refused(seed):
    with pytest.raises(ConfigError, match="seed must be from 0 to"):
        RunOptions(seed=seed)


def test_a_fraction_is_refused():
    with pytest.raises(ConfigError, match="seed must be from 0 to"):
        ranges.check_value(ranges.FLAGS["seed"], 1.5, "seed")
