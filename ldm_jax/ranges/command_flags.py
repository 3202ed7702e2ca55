"""Checks of the commands' flags."""

from ldm_jax.ranges.checks import Check, is_whole, place, read_whole, real, whole
from ldm_jax.ranges.sample_section import SAMPLE
from ldm_jax.ranges.shared import GIGABYTES, SEED, SIDE, STEPS, WIDTH


def _is_step(value):
    if value == "best" or is_whole(value):
        return value == "best" or 0 <= value <= STEPS
    return isinstance(value, str) and read_whole(value, 0, STEPS) is not None


# Flag of any command -> check. Strings must not be empty; None is an unset flag.
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
    "image_size": whole(16, SIDE),
    "height": whole(1, SIDE),
    "width": whole(1, SIDE),
    "factor": whole(2, 8),
    "overlap": whole(0, SIDE),
    "classifier_scale": real(-1e6, 1e6),
    "guide_scale": real(-1e6, 1e6),
    "max_image_gb": GIGABYTES,
    "num_heads": whole(1, WIDTH),
    "head_channels": whole(1, WIDTH),
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
            *("images", "reference", "json"),
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
