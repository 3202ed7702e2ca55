"""The loss by noise level: its draws, and that only its own rows count."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax import latent_diffusion, sharding
from ldm_jax.diffusion.schedule import add_noise, make_schedule
from ldm_jax.errors import ConfigError
from ldm_jax.training import diffusion
from ldm_jax.training.held_out.noise_levels import by_level, draw_levels, level_losses
from tests.runs import tiny_config
from tests.sampling.common import SIZE, make_trained, picture, with_small_backbone


def test_levels_follow_from_the_number_of_the_example_alone():
    def draw(seed, index):
        return jax.jit(draw_levels, static_argnums=(0, 2, 3))(seed, index, 10, 1000)

    chosen, timesteps, keys = draw(5, jnp.arange(40))
    # Ten in a row have one each, and rows begin at different ones.
    rows = np.asarray(chosen).reshape(4, 10)
    np.testing.assert_array_equal(np.sort(rows), np.tile(np.arange(10), (4, 1)))
    assert len(set(rows[:, 0].tolist())) > 1
    np.testing.assert_array_equal(np.asarray(timesteps) // 100, chosen)
    some = draw(5, jnp.arange(40)[::-1])
    np.testing.assert_array_equal(some[1], timesteps[::-1])
    np.testing.assert_array_equal(*map(jax.random.key_data, (some[2], keys[::-1])))
    assert (draw(6, jnp.arange(40))[1] != timesteps).any()


@pytest.fixture(scope="module")
def trained():
    return with_small_backbone(make_trained())


def _means(trained, devices, size, count, bins):
    """As `HeldOut` has it: means of the batches, each with the weight of its rows."""
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    losses = jax.jit(level_losses, static_argnums=(0, 4, 5))
    rows, counts = [], []
    for begin in range(0, count, size):
        index = np.arange(begin, begin + size, dtype=np.int32)
        images = [picture(int(k)) for k in np.minimum(index, count - 1)]
        batch = {"image": np.stack(images), "index": index}
        batch["mask"] = index < count
        # What does not count may be anything.
        batch["image"][~batch["mask"]] = 255
        batch = sharding.put_batch(batch, mesh)
        arguments = trained.params, trained.frozen, batch, 0, bins
        rows.append(jax.device_get(losses(trained.model, *arguments)))
        counts.append(int(np.asarray(batch["mask"]).sum()))
    means = {
        name: np.average([row[name] for row in rows], axis=0, weights=counts)
        for name in rows[0]
    }
    return by_level(means | {"num_images": count})


def test_neither_batches_nor_devices_change_the_loss_of_a_level(trained):
    one = _means(trained, 1, 8, 14, 5)
    assert one.keys() == {*(f"loss_level_{k}" for k in range(5)), "num_images"} | {
        "level_draws"
    }
    assert one["level_draws"] == 2
    for devices, size in ((4, 8), (8, 16)):
        other = _means(trained, devices, size, 14, 5)
        assert other == pytest.approx(one, rel=1e-4)


def test_a_loss_of_a_level_is_that_of_its_draws(trained):
    found = _means(trained, 1, 8, 1, 5)
    (name,) = (name for name in found if name.startswith("loss_level_"))
    assert found["level_draws"] == 0
    model, params = trained.model, trained.params
    latents = jnp.float32(picture(0)[None] / 127.5 - 1)

    @jax.jit
    def loss():
        chosen, timesteps, keys = draw_levels(0, jnp.arange(1), 5, 1000)
        noise = jax.random.normal(keys[0], (1, SIZE, SIZE, 3))
        slots = latent_diffusion.condition(model, params, {})
        point = model.schedule.at(timesteps)
        noisy = add_noise(latents, noise, point)
        output = latent_diffusion.apply_backbone(model, params, noisy, timesteps, slots)
        return chosen[0], jnp.square(
            output - model.objective.target(latents, noise, point)
        ).mean()

    level, expected = loss()
    assert name == f"loss_level_{level}"
    assert found[name] == pytest.approx(float(expected), rel=1e-4)


def test_more_bins_than_levels_are_refused(trained):
    config = tiny_config("shapes_class", "", eval__levels=10)
    schedule = make_schedule(num_train_timesteps=9)
    model = dataclasses.replace(trained.model, schedule=schedule)
    assert diffusion._level_bins(config, trained.model) == 10
    # A config of before the section was there asks for nothing.
    old = tiny_config("shapes_class", "")
    del old.eval
    assert diffusion._level_bins(old, trained.model) == 10
    assert diffusion._level_bins(old, model) == 9
    with pytest.raises(ConfigError, match="num_train_timesteps=9: use eval.levels=9"):
        diffusion._level_bins(config, model)
