"""The training state, which is passed from step to step and saved in checkpoints."""

from typing import Any

import flax.struct
import jax


@flax.struct.dataclass
class TrainState:
    """Training state of arrays only; steps close over modules and optimisers.

    Attributes:
      step: int32 scalar, the number of optimiser updates done.
      params: Parameters, a dict with one entry per network.
      ema_params: Moving average of `params` or of the part of it that is used after
        training; an empty dict if the config keeps none.
      opt_state: Optimiser states, a dict with one entry per optimiser.
      stats: Statistics that are not trained by gradients: of norms, codebooks, logits;
        an empty dict if there are none.
    """

    step: Any
    params: Any
    ema_params: Any
    opt_state: Any
    stats: Any


def items_of(state: TrainState) -> dict[str, Any]:
    """Splits a state into the items of a checkpoint; an empty one is left out.

    Args:
      state: TrainState of arrays or of shapes.

    Returns:
      Name of the item -> tree.
    """
    items = {
        "params": state.params,
        "training": {
            "step": state.step,
            "opt_state": state.opt_state,
            "stats": state.stats,
        },
    }
    if jax.tree.leaves(state.ema_params):
        items["ema_params"] = state.ema_params
    return items
