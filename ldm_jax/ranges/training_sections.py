"""Checks of the sections for training: objective, optimiser, steps and evaluation."""

import re

from ldm_jax.ranges.checks import Check, is_whole, place, real, several, text, whole
from ldm_jax.ranges.shared import DECAY, EVERY, FLAG, FRACTION, STEPS, WORDS


def _is_overrides(value):
    """Whether a value consists of pairs (regular expression, axis or None)."""
    if not isinstance(value, tuple | list):
        return False
    for pair in value:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            return False
        pattern, axis = pair
        if not isinstance(pattern, str) or not (axis is None or is_whole(axis)):
            return False
        try:
            re.compile(pattern)
        except re.error:
            return False
    return True


# Which rate is too high depends on the optimiser, and runs that diverge report it.
_RATE = real(0, 1e30, "(")
_WEIGHT = real(0, 1e9)

TRAIN = {
    "batch_size": whole(1, 2**20),
    "num_steps": whole(1, STEPS),
    "init_from": place(),
    "freeze": WORDS,
    "learning_rate": _RATE,
    "decay": text(),
    "warmup_steps": whole(0, STEPS),
    "decay_steps": whole(1, STEPS, none="the end of the run"),
    "start_factor": FRACTION,
    "end_factor": FRACTION,
    "grad_clip": real(0, 1e9, none="off", zero="off"),
    "accumulate_steps": whole(1, 2**20),
    "ema_decay": real(0, 1, ")", none="no average"),
    "log_every": whole(1, STEPS),
    "eval_every": EVERY,
    "eval_batches": whole(1, STEPS, none="all"),
    "preview_every": EVERY,
    "preview_images": whole(0, 1024, zero="off"),
    "checkpoint_every": EVERY,
    "keep_last": whole(1, STEPS),
    "keep_every": EVERY,
    "sharding_overrides": Check(
        "pairs of (regular expression, axis or None)", _is_overrides
    ),
    "wandb": FLAG,
}

OPTIMIZER = {
    "kind": text(),
    "b1": DECAY,
    "b2": DECAY,
    "eps": real(0, 1, "("),
    "weight_decay": real(0, 10),
}

MESH = {"data": whole(-1, 2**20), "fsdp": whole(1, 2**20)}

EVAL = {
    "every": EVERY,
    "num_samples": whole(2, 10**7),
    "batch_size": whole(1, 2**20),
    "distances": several(text(), 1),
    "reference": place(),
    "reference_images": whole(2, 10**9, none="all"),
    "label_mode": text(),
    "best": text(none="no checkpoint for its result"),
    "levels": whole(0, 1000, zero="off"),
}

EVAL_WEIGHTS = dict.fromkeys(
    ("inception", "dinov2", "clip"), place(none="random weights")
)

SCHEDULE = {
    "kind": text(),
    "num_train_timesteps": whole(2, 100_000),
    "beta_start": real(0, 1, "()"),
    "beta_end": real(0, 1, "()"),
    "cosine_s": real(0, 1),
    "zero_terminal_snr": FLAG,
    "prediction_type": text(),
}

LOSS = {
    "loss_type": text(),
    "simple_weight": _WEIGHT,
    "elbo_weight": _WEIGHT,
    "v_posterior": FRACTION,
    "logvar_init": real(-100, 100),
    "learn_logvar": FLAG,
    "min_snr_gamma": real(0, 1e9, "(", none="off"),
    "offset_noise": real(0, 10),
    "timestep_sampling": text(),
    "logit_mean": real(-100, 100),
    "logit_std": real(0, 100),
    "reconstruction": text(),
    "reduction": text(none="the kind's"),
    "lpips_weights": place(),
    "perceptual_weight": real(0, 1e9, none="1 with weights of LPIPS"),
    "kl_weight": _WEIGHT,
    "codebook_weight": real(0, 1e9, none="the quantiser's"),
    "codebook_beta": _WEIGHT,
    "codebook_legacy": FLAG,
    "codebook_ema_decay": real(0, 1, ")", none="off", zero="off"),
    "restart_threshold": real(0, 1, ")", zero="off"),
    "gumbel_temperature": real(0, 1000, "("),
    "gumbel_end_temperature": real(0, 1000, "("),
    "gumbel_steps": whole(1, STEPS),
    "disc_start": whole(0, STEPS),
    "disc_weight": _WEIGHT,
    "disc_loss": text(),
    "disc_factor": _WEIGHT,
    "disc_ramp_steps": whole(0, STEPS),
    "disc_weight_cap": real(0, 1e12, "("),
    "disc_learning_rate": real(0, 10, "(", none="that of section train"),
    "disc_grad_clip": real(0, 1e9, none="that of section train"),
    "r1_weight": _WEIGHT,
    "lecam_weight": _WEIGHT,
}
