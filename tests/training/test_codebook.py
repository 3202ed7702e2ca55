"""The codebook between steps: averages by hand, restarts, global batches."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ldm_jax.models import quantizer
from ldm_jax.models.quantizer import VectorQuantizer
from ldm_jax.training import codebook
from tests.common import assert_close

CODES = jax.random.normal(jax.random.key(0), (8, 3))
BATCHES = jax.random.normal(jax.random.key(1), (3, 4, 6, 5, 3))


def _quantize(latents, codes=CODES):
    model = VectorQuantizer(num_codes=8, features=3)
    return model.apply({"params": {"embedding": codes}}, latents)


def _totals(latents, codes=CODES, parts=1):
    totals = codebook.empty_totals(8, 3)
    for index in range(parts):
        quantized = _quantize(latents[index::parts], codes)
        rng = jax.random.fold_in(jax.random.key(2), index)
        totals = codebook.add_totals(totals, quantized, rng, index, parts)
    return totals


def test_average_equals_the_one_by_hand():
    codes, stats = CODES, codebook.init_codebook_stats(8, 3, 0.9)
    # As if each code had got what is even use, 120 / 8 latents, all like itself.
    counts, sums = np.full(8, 15.0), 15.0 * np.asarray(CODES)
    for step, latents in enumerate(BATCHES):
        totals = _totals(latents, codes)
        indices = np.ravel(_quantize(latents, codes).indices)
        flat = np.reshape(latents, (-1, 3))
        for code in range(8):
            mine = flat[indices == code]
            counts[code] = 0.9 * counts[code] + 0.1 * len(mine)
            sums[code] = 0.9 * sums[code] + 0.1 * mine.sum(0)
        codes, restarted, stats = codebook.update_codebook(
            codes, codes + 1, stats, totals, step, ema_decay=0.9
        )
        assert_close(codes, sums / counts[:, None])
        assert not restarted.any()


def test_a_code_without_latents_stays_where_it_is():
    totals = codebook.empty_totals(8, 3).replace(counts=jnp.zeros(8).at[0].set(10.0))
    codes, stats = CODES, codebook.init_codebook_stats(8, 3, 0.1)
    for step in range(60):  # its average use is then below the smallest float
        codes, _, stats = codebook.update_codebook(
            codes, codes, stats, totals, step, ema_decay=0.1
        )
    assert stats["usage"][1] == 0
    assert_close(codes[1:], CODES[1:])


def test_dead_codes_become_latents_and_come_back_to_life():
    # Two codes so far away that nothing is near them.
    codes = CODES.at[jnp.array([2, 5])].set(100.0)
    latents, options = BATCHES[0], {"restart_threshold": 0.5}
    stats = codebook.init_codebook_stats(8, 3, **options)
    for step in range(80):
        totals = _totals(latents, codes)
        codes, restarted, stats = codebook.update_codebook(
            codes, codes, stats, totals, step, **options
        )
        if restarted.any():
            break
    assert step == 68  # 0.99^69 < 0.5
    assert restarted[2] and restarted[5]
    flat = np.reshape(np.asarray(latents), (-1, 3))
    for code in np.flatnonzero(restarted):
        assert (np.asarray(codes[code]) == flat).all(1).any()
        assert stats["usage"][code] == 1
    assert len(np.unique(codes, axis=0)) == 8
    counts = _quantize(latents, codes).counts
    assert (counts[np.flatnonzero(restarted)] > 0).all()


def test_without_an_average_living_codes_are_the_optimisers():
    options = {"restart_threshold": 0.5}
    stats = codebook.init_codebook_stats(8, 3, **options)
    codes, restarted, stats = codebook.update_codebook(
        CODES, CODES + 1, stats, _totals(BATCHES[0]), 0, **options
    )
    np.testing.assert_array_equal(codes, CODES + 1)
    assert not restarted.any() and "sums" not in stats
    assert codebook.init_codebook_stats(8, 3) == {}


def test_draws_are_of_the_batch_and_differ():
    latents = BATCHES[0]
    drawn = codebook.draw_latents(jax.random.key(3), latents, 100)
    flat = np.reshape(np.asarray(latents), (-1, 3))
    assert all((np.asarray(row) == flat).all(1).any() for row in drawn)
    assert len(np.unique(drawn, axis=0)) == 100
    more = codebook.draw_latents(jax.random.key(3), latents, 500)
    assert len(np.unique(more, axis=0)) == 120
    other = codebook.draw_latents(jax.random.key(4), latents, 100)
    assert (drawn != other).any()


def test_micro_batches_add_up():
    latents = BATCHES[0]
    whole, parts = _totals(latents), _totals(latents, parts=2)
    np.testing.assert_array_equal(parts.counts, whole.counts)
    assert_close(parts.sums, whole.sums)
    for index in (0, 1):
        rows = np.reshape(np.asarray(latents)[index::2], (-1, 3))
        drawn = np.asarray(parts.drawn)[index::2]
        assert all((row == rows).all(1).any() for row in drawn)


def test_totals_are_those_of_the_global_batch():
    latents = BATCHES[0]
    mesh = Mesh(np.array(jax.local_devices()[:4]), ("data",))
    split = jax.device_put(latents, NamedSharding(mesh, PartitionSpec("data")))
    one, four = jax.jit(_totals)(latents), jax.jit(_totals)(split)
    np.testing.assert_array_equal(four.counts, one.counts)
    assert_close(four.sums, one.sums)
    np.testing.assert_array_equal(four.drawn, one.drawn)


def test_usage_and_perplexity():
    even = quantizer.codebook_metrics(jnp.full(8, 3.0))
    assert even["codebook_usage"] == 1
    np.testing.assert_allclose(even["codebook_perplexity"], 8, rtol=1e-5)
    one = quantizer.codebook_metrics(jnp.zeros(8).at[3].set(5.0))
    np.testing.assert_allclose(list(one.values()), [1 / 8, 1])
    fractions = quantizer.fractions_of_codes(jnp.array([[[0, 1]], [[1, 1]]]), 3)
    np.testing.assert_array_equal(fractions, [[0.5, 0.5, 0], [0, 1, 0]])
