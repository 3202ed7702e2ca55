"""What the keys of a config and the flags of the commands may be, in one table.

SECTIONS says it of each section of a config, FLAGS of the commands' flags. A row is a
Check; what needs more than the value itself (choices that stand in tables of their own,
what fits together) is checked where the section is read, by `config.build` and by the
constructors that it calls.

The largest values are far beyond what is useful: they keep a slip of the finger from
taking all memory or a week.
"""

import math
import numbers
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ldm_jax.errors import ConfigError


class Check(NamedTuple):
    """What a value must be.

    Attributes:
      what: The same in words, to follow "must be".
      accepts: Value -> whether it is that.
      note: What values with a meaning of their own mean, to follow a semicolon.
    """

    what: str
    accepts: Callable[[Any], bool]
    note: str = ""

    def problem(self, name: str, value: Any) -> str:
        """Says what is wrong with a value.

        Args:
          name: What the value is called.
          value: The value.

        Returns:
          One line.
        """
        note = f"; {self.note}" if self.note else ""
        return f"{name} must be {self.what}, got {shown(value)}{note}"


def whole(least: int, most: int | None = None, none: str = "", zero: str = "") -> Check:
    """A whole number.

    Args:
      least: The least.
      most: The largest; none by default.
      none: What None means; it is refused where that is nothing.
      zero: What 0 means, where that is something of its own.

    Returns:
      The check.
    """

    def accepts(value):
        return _is_whole(value) and least <= value <= (
            math.inf if most is None else most
        )

    limits = f"{least:,} or more" if most is None else f"from {least:,} to {most:,}"
    what = f"{limits} (a whole number)"
    return _optional(what, accepts, none, zero)


def real(
    least: float = -math.inf,
    most: float = math.inf,
    open_: str = "",
    none: str = "",
    zero: str = "",
) -> Check:
    """A finite number.

    Args:
      least: The least.
      most: The largest.
      open_: "(", ")" or both: the ends that do not belong to it.
      none: What None means; it is refused where that is nothing.
      zero: What 0 means, where that is something of its own.

    Returns:
      The check.
    """
    above, below = "(" in open_, ")" in open_

    def accepts(value):
        if not _is_real(value) or not math.isfinite(value):
            return False
        low = least < value if above else least <= value
        return low and (value < most if below else value <= most)

    ends = ("(" if above else "[") + f"{least:g}, {most:g}" + (")" if below else "]")
    what = f"in {ends}" if math.isfinite(least + most) else "a finite number"
    if open_ == "(":
        what = f"more than {least:g}, at most {most:g}"
    return _optional(what, accepts, none, zero)


def text(empty: bool = False, none: str = "") -> Check:
    """A string.

    Args:
      empty: Whether it may be empty.
      none: What None means; it is refused where that is nothing.

    Returns:
      The check.
    """

    def accepts(value):
        return isinstance(value, str) and (empty or bool(value.strip()))

    return _optional("a string" if empty else "a string, not empty", accepts, none, "")


def place(none: str = "") -> Check:
    """A file or folder, on a disk or in an object store; it may be empty.

    Python would take another address for a local folder, and write there.

    Args:
      none: What None means; it is refused where that is nothing.

    Returns:
      The check.
    """

    def accepts(value):
        if not isinstance(value, str | os.PathLike):
            return False
        return "://" not in str(value) or str(value).startswith("gs://")

    note = "of the object stores gs:// alone is supported: mount others, or copy it"
    if none:
        note = f"None is {none}; {note}"
        return Check("a path", lambda v: v is None or accepts(v), note)
    return Check("a path", accepts, note)


def local_place(none: str = "") -> Check:
    """A file or folder on a disk of this machine; it may be empty.

    Args:
      none: What None means; it is refused where that is nothing.

    Returns:
      The check.
    """
    check = place(none)

    def accepts(value):
        return check.accepts(value) and "://" not in str(value)

    return Check("a local path", accepts, "it must lie on a disk of this machine")


def several(check: Check, least: int = 0, none: str = "") -> Check:
    """A tuple or list.

    Args:
      check: What each of its values must be.
      least: How many there are at least.
      none: What None means; it is refused where that is nothing.

    Returns:
      The check.
    """

    def accepts(value):
        if not isinstance(value, tuple | list) or not least <= len(value) <= _MOST:
            return False
        return all(map(check.accepts, value))

    what = f"a tuple of values that are each {check.what}"
    return _optional(what, accepts, none, "")


def per_level(check: Check, none: str = "") -> Check:
    """One value, or one for each level.

    Args:
      check: What a value must be.
      none: What None means; it is refused where that is nothing.

    Returns:
      The check.
    """
    many = several(check, 1)

    def accepts(value):
        return check.accepts(value) or many.accepts(value)

    return _optional(f"{check.what}, or a tuple of such", accepts, none, "")


def _optional(what, accepts, none, zero):
    """Adds None, and in words what it and 0 mean."""
    if zero and zero == none:
        note = f"0 or None is {zero}"
    else:
        rows = (("0", zero), ("None", none))
        note = ", ".join(f"{value} is {words}" for value, words in rows if words)
    if none:
        return Check(what, lambda value: value is None or accepts(value), note)
    return Check(what, accepts, note)


def _is_whole(value):
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_real(value):
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def find(section: str, key: str) -> Check | None:
    """Finds the check of a key.

    Args:
      section: Dotted name of its section; "" for the keys beside the sections.
      key: The key.

    Returns:
      The check, or None if the table has no row of it.
    """
    for pattern, rows in SECTIONS.items():
        parts, names = pattern.split("."), section.split(".")
        if len(parts) == len(names) and all(
            part in ("*", name) for part, name in zip(parts, names, strict=True)
        ):
            return rows.get(key)
    return None


def check_section(section: Mapping[str, Any], name: str) -> None:
    """Checks the values of a section that the table has rows of.

    Args:
      section: Its keys and values.
      name: Its dotted name; "" for the keys beside the sections.

    Raises:
      ConfigError: If one is out of its range.
    """
    for key, value in section.items():
        check = find(name, key)
        if check is not None:
            check_value(check, value, f"{name}.{key}" if name else key)


def check_value(check: Check, value: Any, name: str) -> None:
    """Checks one value.

    Args:
      check: What it must be.
      value: The value.
      name: What it is called, for the message.

    Raises:
      ConfigError: If it is something else.
    """
    if not check.accepts(value):
        raise ConfigError(check.problem(name, value))


def shown(value: Any) -> str:
    """Writes a value for a message, where it is long its beginning.

    Args:
      value: Anything.

    Returns:
      Text of one line.
    """
    try:
        words = value if isinstance(value, str) and value else repr(value)
    except ValueError:
        # Python writes no whole numbers of thousands of digits.
        words = "a very large number"
    words = " ".join(words.split())
    return words if len(words) <= 60 else words[:57] + "..."


# What people write -> the name of the type that they mean.
_DTYPES = {
    "float32": "float32 f32 fp32 float single",
    "bfloat16": "bfloat16 bf16",
    "float16": "float16 f16 fp16 half",
}
_DTYPE_OF = {word: name for name, words in _DTYPES.items() for word in words.split()}


def dtype_name(value: Any) -> Any:
    """Gives a compute type its usual name.

    Args:
      value: Name, as "bfloat16", "bf16" or "torch.bfloat16"; or a type.

    Returns:
      "float32", "bfloat16" or "float16"; what is neither a string nor known, as it is.
    """
    if not isinstance(value, str):
        return value
    word = value.strip().lower()
    word = word.removeprefix("torch.").removeprefix("jnp.").removeprefix("np.")
    return _DTYPE_OF.get(word, value)


def _is_dtype(value):
    # A type itself is what code gives.
    if isinstance(value, str):
        return dtype_name(value) in _DTYPES
    return value is not None and not _is_real(value)


def _is_overrides(value):
    """Whether it is pairs of (regular expression, axis or None)."""
    if not isinstance(value, tuple | list):
        return False
    for pair in value:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            return False
        pattern, axis = pair
        if not isinstance(pattern, str) or not (axis is None or _is_whole(axis)):
            return False
        try:
            re.compile(pattern)
        except re.error:
            return False
    return True


def _is_power(value):
    return _is_whole(value) and value > 0 and value & (value - 1) == 0


def _is_step(value):
    if value == "best" or _is_whole(value):
        return value == "best" or 0 <= value <= _STEPS
    digits = isinstance(value, str) and value.isdecimal() and len(value) <= 10
    return digits and int(value) <= _STEPS


def _is_scale(value):
    """Whether it is a guidance scale: a number, or a number for each condition."""
    if isinstance(value, Mapping):
        value = tuple(value.items())
    if isinstance(value, tuple | list):
        return all(
            isinstance(pair, tuple | list) and len(pair) == 2 and _is_scale(pair[1])
            for pair in value
        )
    return _SCALE.accepts(value)


def _is_channels(value):
    if isinstance(value, str) and value.isdecimal() and len(value) < 6:
        value = int(value)
    if value in (None, "grey", "rgb", "rgba"):
        return True
    return _is_whole(value) and 0 < value <= 1024


def _is_value_range(value):
    if value is None:
        return True
    if not isinstance(value, tuple | list) or len(value) != 2:
        return False
    return all(_is_real(v) and math.isfinite(v) for v in value) and value[0] < value[1]


def _is_rgb_channels(value):
    if not isinstance(value, tuple | list):
        return False
    return all((_is_whole(v) and v >= 0) or v == "mean" for v in value)


def _is_interval(value):
    if not isinstance(value, tuple | list) or len(value) != 2:
        return False
    return all(map(FRACTION.accepts, value)) and value[0] <= value[1]


# The longest tuple, the longest run, the largest batch and the widest layer.
_MOST = 2**16
_STEPS = 2**31 - 1
_WIDTH = 2**16
# Sides of images in pixels.
_SIDE = 2**15

SEED = whole(0, 2**64 - 1)
FRACTION = real(0, 1)
_FLAG = Check("True or False", lambda value: isinstance(value, bool))
# What is too high depends on the optimiser, and a run that diverges says so.
_RATE = real(0, 1e30, "(")
_WEIGHT = real(0, 1e9)
_DECAY = real(0, 1, ")")
_SCALE = real(-1000, 1000)
_WORDS = several(text())
_PARTS = Check(
    "a section, of keys and their values", lambda value: isinstance(value, Mapping)
)
_NAMES = Check(
    "a string, or a tuple of such",
    lambda value: isinstance(value, str) or several(text(), 1).accepts(value),
)
_EVAL_NAMES = Check(
    _NAMES.what,
    lambda value: value is None or _NAMES.accepts(value),
    "none holds out a part of data.name",
)
_GIGABYTES = real(0, 1e6, "(")
_NUMBERS = several(real(-1e9, 1e9), 1, none="what is measured")
_DTYPE = Check("a compute type: " + ", ".join(_DTYPES), _is_dtype)
_POWERS = several(Check("a power of two: 1, 2, 4, ...", _is_power))

# Fields of networks; those that others share have one meaning.
_NETWORK = {
    "kind": text(),
    "tiny": _FLAG,
    "channels": whole(1, _WIDTH),
    "channel_mult": several(whole(1, 1024), 1),
    "num_res_blocks": per_level(whole(1, 1024)),
    "attention_factors": _POWERS,
    "norm_groups": whole(1, _WIDTH),
    "dropout": _DECAY,
    "remat": _FLAG,
    "attention_kernel": text(),
    "conv_resample": _FLAG,
    "dtype": _DTYPE,
}
_UNET = _NETWORK | {
    "num_heads": per_level(whole(1, _WIDTH), none="what head_channels gives"),
    "head_channels": per_level(whole(1, _WIDTH), none="what num_heads gives"),
    "up_num_heads": per_level(whole(1, _WIDTH), none="num_heads"),
    "transformer_depth": per_level(whole(0, 1024)),
    "scale_shift_norm": _FLAG,
    "adaln_zero": _FLAG,
    "resblock_updown": _FLAG,
    "pool": text(),
}
_AUTOENCODER = _NETWORK | {
    "num_res_blocks": whole(1, 1024),
    "z_channels": whole(1, _WIDTH),
    "embed_dim": whole(1, _WIDTH),
    "mid_attention": _FLAG,
    "image_channels": whole(1, 1024),
    "tanh_output": _FLAG,
    "quant_conv": _FLAG,
    "num_codes": whole(1, 2**24),
    "quantizer": text(),
}

# The section `first_stage` of a second stage.
LATENTS = {
    "workdir": place(),
    "step": whole(0, _STEPS, none="the newest"),
    "scaling_factor": real(0, 1e6, "(", none="what is measured"),
    "latents_mean": _NUMBERS,
    "latents_std": _NUMBERS,
    "latent_statistics": text(),
    "scaling_batches": whole(1, 2**20),
}

SAMPLE = {
    "sampler": text(),
    "num_steps": whole(1, 100_000),
    "guidance_scale": Check(
        f"{_SCALE.what}, one number or one for each condition", _is_scale
    ),
    "guidance_interval": Check("(low, high), 0 <= low <= high <= 1", _is_interval),
    "guidance_rescale": FRACTION,
    "eta": real(0, 1, none="the sampler's own"),
    "spacing": text(),
    "final_level": text(none="the spacing's own"),
    "shift": real(0, 1000, "("),
    "temperature": real(0, 100),
    "strength": real(0, 1, none="noise alone"),
    "tile": whole(1, _SIDE, none="the whole at once"),
    "decode_tile": whole(1, _SIDE, none="the whole at once"),
}

_EVERY = whole(0, _STEPS, none="off", zero="off")

TRAIN = {
    "batch_size": whole(1, 2**20),
    "num_steps": whole(1, _STEPS),
    "init_from": place(),
    "freeze": _WORDS,
    "learning_rate": _RATE,
    "decay": text(),
    "warmup_steps": whole(0, _STEPS),
    "decay_steps": whole(1, _STEPS, none="the end of the run"),
    "start_factor": FRACTION,
    "end_factor": FRACTION,
    "grad_clip": real(0, 1e9, none="off", zero="off"),
    "accumulate_steps": whole(1, 2**20),
    "ema_decay": real(0, 1, ")", none="no average"),
    "log_every": whole(1, _STEPS),
    "eval_every": _EVERY,
    "eval_batches": whole(1, _STEPS, none="all"),
    "preview_every": _EVERY,
    "preview_images": whole(0, 1024, zero="off"),
    "checkpoint_every": _EVERY,
    "keep_last": whole(1, _STEPS),
    "keep_every": _EVERY,
    "sharding_overrides": Check(
        "pairs of (regular expression, axis or None)", _is_overrides
    ),
    "wandb": _FLAG,
}

EVAL = {
    "every": _EVERY,
    "num_samples": whole(2, 10**7),
    "batch_size": whole(1, 2**20),
    "distances": several(text(), 1),
    "reference": place(),
    "reference_images": whole(2, 10**9, none="all"),
    "label_mode": text(),
    "best": text(none="no checkpoint for its result"),
    "levels": whole(0, 1000, zero="off"),
}

# Section -> key -> check; "*" stands for a name of the user's.
SECTIONS: dict[str, dict[str, Check]] = {
    "": {"stage": text(), "seed": SEED},
    "data": {
        "source": text(),
        "name": _NAMES,
        "data_dir": text(empty=True, none="the usual place"),
        "split": text(),
        "eval_split": text(empty=True, none="none"),
        "eval_name": _EVAL_NAMES,
        "image_size": whole(1, _SIDE),
        "crop": text(),
        "min_crop": real(0, 1, "("),
        "flip": _FLAG,
        "workers": whole(0, 1024),
        "restart_workers": whole(0, 10**6),
        "on_error": text(),
        "max_image_gb": _GIGABYTES,
        "channels": Check(
            "grey, rgb, rgba, or a number of channels from 1 to 1,024", _is_channels
        ),
        "pixel_type": Check(
            "uint8, uint16, float32, or None (uint8; float32 of many channels)",
            lambda value: value in (None, "uint8", "uint16", "float32"),
        ),
        "value_range": Check(
            "(lowest, highest), two numbers, or None (that of the files' integers)",
            _is_value_range,
        ),
        "rgb_channels": Check("numbers of channels, or mean", _is_rgb_channels),
        "text_states": _FLAG,
        "image_key": text(none="the usual one"),
        "label_key": text(empty=True, none="the usual one"),
        "validation_fraction": real(0, 1, "()"),
        "keys": _WORDS,
        "optional": _WORDS,
        "box_names": _WORDS,
        "parts": _PARTS,
        "buckets": _PARTS,
        "filter": text(empty=True, none="all examples"),
        "caption_field": text(none="the usual one"),
        "index_dir": local_place(none="beside the data"),
        "cache_gb": _GIGABYTES,
        "subset": text(none="the set's own"),
        "revision": text(none="the newest"),
    },
    "data.buckets": {
        "sizes": per_level(whole(1, _SIDE)),
        "step": whole(1, _SIDE),
        "max_ratio": real(1, 64),
    },
    "data.inputs.*": {
        "tokenizer": text(),
        "max_length": whole(1, 2**16),
        "keys": several(text(), 1),
        "weights": several(real(0, 1e9, "(")),
        "dropout": _DECAY,
        "fallback": text(empty=True, none="an error"),
        "pad_id": whole(0, 2**31, none="the tokenizer's own"),
        "vocab_size": whole(1, 2**24),
        "max_objects": whole(1, 2**16),
        "num_classes": whole(1, 2**24, none="any"),
        "factor": whole(1, 1024),
        "min_fraction": FRACTION,
        "max_fraction": FRACTION,
        "fill": real(-1, 1),
        "size": whole(1, _SIDE, none="that of the image"),
        "stretch": _FLAG,
    },
    "first_stage": _AUTOENCODER | LATENTS,
    "discriminator": {
        "channels": whole(1, _WIDTH),
        "num_layers": whole(1, 16),
        "norm": text(),
        "dtype": _DTYPE,
    },
    "conditions.*": {
        "dropout": _DECAY,
        "weights": place(none="none"),
        "num_classes": whole(1, 2**24, none="that of the data"),
        "features": whole(1, _WIDTH, none="what follows from others"),
        "null_class": _FLAG,
        "ignore_label": whole(-(2**31), 2**31 - 1, none="what the kind says"),
        "vocab_size": whole(2, 2**24, none="that of the tokenizer"),
        "max_length": whole(1, 2**16, none="that of the input"),
        "num_layers": whole(0, 1024),
        "num_heads": whole(1, _WIDTH),
        "head_channels": whole(1, _WIDTH),
        "mlp_ratio": whole(1, 1024),
        "use_bias": _FLAG,
        "causal": _FLAG,
        "remat": _FLAG,
        "frozen": _FLAG,
        "pooled": _FLAG,
        "image_size": whole(1, _SIDE),
        "patch_size": whole(1, _SIDE),
        "width": whole(1, _WIDTH),
        "embed_dim": whole(1, _WIDTH),
        "num_stages": whole(0, 64),
        "multiplier": real(0, 1024, "("),
        "stretch": _FLAG,
        "mask_first": _FLAG,
        "signed_mask": _FLAG,
        "dtype": _DTYPE,
    },
    "backbone": _UNET,
    "classifier": _UNET,
    "schedule": {
        "kind": text(),
        "num_train_timesteps": whole(2, 100_000),
        "beta_start": real(0, 1, "()"),
        "beta_end": real(0, 1, "()"),
        "cosine_s": real(0, 1),
        "zero_terminal_snr": _FLAG,
        "prediction_type": text(),
    },
    "loss": {
        "loss_type": text(),
        "simple_weight": _WEIGHT,
        "elbo_weight": _WEIGHT,
        "v_posterior": FRACTION,
        "logvar_init": real(-100, 100),
        "learn_logvar": _FLAG,
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
        "codebook_legacy": _FLAG,
        "codebook_ema_decay": real(0, 1, ")", none="off", zero="off"),
        "restart_threshold": real(0, 1, ")", zero="off"),
        "gumbel_temperature": real(0, 1000, "("),
        "gumbel_end_temperature": real(0, 1000, "("),
        "gumbel_steps": whole(1, _STEPS),
        "disc_start": whole(0, _STEPS),
        "disc_weight": _WEIGHT,
        "disc_loss": text(),
        "disc_factor": _WEIGHT,
        "disc_ramp_steps": whole(0, _STEPS),
        "disc_weight_cap": real(0, 1e12, "("),
        "disc_learning_rate": real(0, 10, "(", none="that of section train"),
        "disc_grad_clip": real(0, 1e9, none="that of section train"),
        "r1_weight": _WEIGHT,
        "lecam_weight": _WEIGHT,
    },
    "train": TRAIN,
    "train.optimizer": {
        "kind": text(),
        "b1": _DECAY,
        "b2": _DECAY,
        "eps": real(0, 1, "("),
        "weight_decay": real(0, 10),
    },
    "train.mesh": {"data": whole(-1, 2**20), "fsdp": whole(1, 2**20)},
    "sample": SAMPLE,
    "eval": EVAL,
    "eval.weights": dict.fromkeys(
        ("inception", "dinov2", "clip"), place(none="random weights")
    ),
}

# A part of a mixture has the keys of the section, and a weight.
SECTIONS["data.parts.*"] = SECTIONS["data"] | {
    "weight": real(0, 1e12, "(", none="the number of examples")
}

# Flag of any command -> check; strings may not be empty. None is an unset flag.
FLAGS: dict[str, Check] = {
    "step": Check("best or a step, 0 or more (a whole number)", _is_step),
    "seed": SEED,
    "batch_size": whole(1, 2**16),
    "num_samples": whole(1, 10**7),
    "num_images": whole(1, 10**9),
    "shard_size": whole(1, 2**24),
    "save_every": whole(1, 10**9),
    "num_neighbours": whole(1, 64),
    "num_shown": whole(1, 1024),
    "num_train": whole(1, 10**9),
    "num_validation": whole(0, 10**9),
    "max_shapes": whole(1, 4),
    "image_size": whole(16, _SIDE),
    "height": whole(1, _SIDE),
    "width": whole(1, _SIDE),
    "factor": whole(2, 8),
    "overlap": whole(0, _SIDE),
    "classifier_scale": real(-1e6, 1e6),
    "guide_scale": real(-1e6, 1e6),
    "max_image_gb": _GIGABYTES,
    "num_heads": whole(1, _WIDTH),
    "head_channels": whole(1, _WIDTH),
    "num_processes": whole(1, 2**20),
    "process_id": whole(0, 2**20),
    "start_timeout": whole(1, 10**6),
    "num_classes": whole(1, 10**6),
    "mfu": real(0, 1, "("),
    "price": real(0, 1e6),
    "hang_timeout": whole(0, 10**6, zero="never"),
    **dict.fromkeys(
        (
            *("workdir", "outdir", "first_stage", "decoder", "classifier", "probe"),
            *("images", "reference"),
        ),
        place(),
    ),
    "lpips_weights": place(),
    **{
        name: SAMPLE[name]
        for name in (
            *("num_steps", "guidance_rescale", "shift", "eta", "temperature"),
            *("strength", "tile", "decode_tile"),
        )
    },
}
