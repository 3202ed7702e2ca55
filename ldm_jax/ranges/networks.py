"""Checks of the sections of networks: backbones, autoencoders and conditioners."""

from ldm_jax.ranges.checks import (
    Check,
    is_whole,
    per_level,
    place,
    real,
    several,
    text,
    whole,
)
from ldm_jax.ranges.dtypes import DTYPE
from ldm_jax.ranges.shared import DECAY, FLAG, SIDE, STEPS, WIDTH


def _is_power(value):
    return is_whole(value) and value > 0 and value & (value - 1) == 0


_POWERS = several(Check("a power of two: 1, 2, 4, ...", _is_power))
_NUMBERS = several(real(-1e9, 1e9), 1, none="what is measured")

# Fields of networks; fields of the same name have the same meaning.
_NETWORK = {
    "kind": text(),
    "tiny": FLAG,
    "channels": whole(1, WIDTH),
    "channel_mult": several(whole(1, 1024), 1),
    "num_res_blocks": per_level(whole(1, 1024)),
    "attention_factors": _POWERS,
    "norm_groups": whole(1, WIDTH),
    "dropout": DECAY,
    "remat": FLAG,
    "attention_kernel": text(),
    "conv_resample": FLAG,
    "dtype": DTYPE,
}
UNET = _NETWORK | {
    "num_heads": per_level(whole(1, WIDTH), none="what head_channels gives"),
    "head_channels": per_level(whole(1, WIDTH), none="what num_heads gives"),
    "up_num_heads": per_level(whole(1, WIDTH), none="num_heads"),
    "transformer_depth": per_level(whole(0, 1024)),
    "middle_norm_groups": whole(0, WIDTH, none="norm_groups"),
    "scale_shift_norm": FLAG,
    "adaln_zero": FLAG,
    "resblock_updown": FLAG,
    "pool": text(),
}
_AUTOENCODER = _NETWORK | {
    "num_res_blocks": whole(1, 1024),
    "z_channels": whole(1, WIDTH),
    "embed_dim": whole(1, WIDTH),
    "mid_attention": FLAG,
    "image_channels": whole(1, 1024),
    "tanh_output": FLAG,
    "quant_conv": FLAG,
    "num_codes": whole(1, 2**24),
    "quantizer": text(),
}

# The section `first_stage` of a second stage.
LATENTS = {
    "workdir": place(),
    "step": whole(0, STEPS, none="the newest"),
    "scaling_factor": real(0, 1e6, "(", none="what is measured"),
    "latents_mean": _NUMBERS,
    "latents_std": _NUMBERS,
    "latent_statistics": text(),
    "scaling_batches": whole(1, 2**20),
}

FIRST_STAGE = _AUTOENCODER | LATENTS

DISCRIMINATOR = {
    "channels": whole(1, WIDTH),
    "num_layers": whole(1, 16),
    "norm": text(),
    "dtype": DTYPE,
}

CONDITIONS = {
    "dropout": DECAY,
    "weights": place(none="none"),
    "num_classes": whole(1, 2**24, none="that of the data"),
    "features": whole(1, WIDTH, none="what follows from others"),
    "null_class": FLAG,
    "ignore_label": whole(-(2**31), 2**31 - 1, none="what the kind says"),
    "vocab_size": whole(2, 2**24, none="that of the tokenizer"),
    "max_length": whole(1, 2**16, none="that of the input"),
    "num_layers": whole(0, 1024),
    "num_heads": whole(1, WIDTH),
    "head_channels": whole(1, WIDTH),
    "mlp_ratio": whole(1, 1024),
    "use_bias": FLAG,
    "causal": FLAG,
    "remat": FLAG,
    "frozen": FLAG,
    "pooled": FLAG,
    "image_size": whole(1, SIDE),
    "patch_size": whole(1, SIDE),
    "width": whole(1, WIDTH),
    "embed_dim": whole(1, WIDTH),
    "num_stages": whole(0, 64),
    "multiplier": real(0, 1024, "("),
    "stretch": FLAG,
    "mask_first": FLAG,
    "signed_mask": FLAG,
    "dtype": DTYPE,
}
