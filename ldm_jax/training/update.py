"""The training step of a stage with one loss and one optimiser."""

import jax
import jax.numpy as jnp
import optax

from ldm_jax.config import to_dict
from ldm_jax.training.freeze import hold
from ldm_jax.training.optimizer import make_optimizer, make_rate
from ldm_jax.training.state import TrainState, accumulate, step_rngs, update_ema


def make_update(config, freeze, draw, loss):
    """Makes `init` and `train_step` of a Stage.

    Args:
      config: ConfigDict with `seed` and `train`.
      freeze: Paths of parameters that stay as they are, see `training.freeze`.
      draw: rng -> params, a dict with one entry per network.
      loss: (params, frozen, batch, rng) -> (scalar, metrics).

    Returns:
      (init, train_step), see `Stage`.

    Raises:
      ConfigError: If the section `train` cannot work.
    """
    train = config.train
    rate = make_rate(train)
    optimizer = make_optimizer(to_dict(train.optimizer), rate, train.grad_clip, freeze)

    def init(rng):
        params = draw(rng)
        return TrainState(
            step=jnp.int32(0),
            params=params,
            # A copy: donated buffers must not be shared.
            ema_params=jax.tree.map(jnp.copy, params) if train.ema_decay else {},
            opt_state=optimizer.init(params),
            stats={},
        )

    def train_step(state, frozen, batch):
        rng = step_rngs(config.seed, state.step, ("loss",))["loss"]

        def gradients(rows, index, carry):
            def loss_of(params):
                key = jax.random.fold_in(rng, index)
                return loss(hold(params, freeze), frozen, rows, key)

            (_, metrics), grads = jax.value_and_grad(loss_of, has_aux=True)(
                state.params
            )
            return (grads, metrics), carry

        (grads, metrics), _ = accumulate(gradients, batch, (), train.accumulate_steps)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema_params = state.ema_params
        if train.ema_decay:
            ema_params = update_ema(ema_params, params, state.step, train.ema_decay)
        metrics["grad_norm"] = optax.tree.norm(grads)
        metrics["learning_rate"] = rate(state.step)
        state = state.replace(
            step=state.step + 1,
            params=params,
            ema_params=ema_params,
            opt_state=opt_state,
        )
        return state, metrics

    return init, train_step
