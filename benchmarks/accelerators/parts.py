"""The parts of the benchmark: each is a model, a batch size and a task."""

from typing import Any, NamedTuple


class Part(NamedTuple):
    """A part of the benchmark.

    Attributes:
      task: "train" or "sample".
      config: Config and variant.
      first_stage: Config of its first stage; None if it is a first stage itself.
      batch_size: Images per training step, or samples drawn at once.
      cached: Whether training reads cached latents.
      image_size: Side of the images in pixels; None for the config's.
      changes: Dotted keys of the config -> value.
    """

    task: str
    config: str
    first_stage: str | None
    batch_size: int
    cached: bool = True
    image_size: int | None = None
    changes: dict[str, Any] = {}


# Stable Diffusion 1 on the outputs of its text encoder, which is frozen.
_SD1 = {
    "data.inputs": {"states": {"kind": "feature", "feature": "states"}},
    "conditions": {"states": {"kind": "raw", "slot": "context"}},
    "schedule.kind": "scaled_linear",
}
FEATURES = {"states": (77, 768)}

_LDM4 = ("imagenet_class:f4", "autoencoder_vq:f4")
_LDM8 = ("imagenet_class:f8", "autoencoder_vq:f8")
_SD = ("text_to_image:laion", "autoencoder_kl:f8")

# The most valuable first, in case a device is available for minutes only.
PARTS = {
    "ldm4": Part("train", *_LDM4, 64),
    "sd1": Part("train", *_SD, 16, image_size=512, changes=_SD1),
    "kl_f8": Part("train", "autoencoder_kl:f8", None, 8),
    "sample_ldm4": Part("sample", *_LDM4, 8),
    "vq_f4": Part("train", "autoencoder_vq:f4", None, 8),
    "sample_sd1": Part("sample", *_SD, 8, image_size=512, changes=_SD1),
    "sample_ldm4_one": Part("sample", *_LDM4, 1),
    "sample_sd1_one": Part("sample", *_SD, 1, image_size=512, changes=_SD1),
    # The batch of NVIDIA's entry to MLPerf Training 4.0, for which 80 GB suffice.
    "sd1_64": Part("train", *_SD, 64, image_size=512, changes=_SD1),
    "ldm4_inline": Part("train", *_LDM4, 64, cached=False),
    "ldm8": Part("train", *_LDM8, 128),
    "text": Part("train", *_SD, 32, image_size=256),
    "sd1_inline": Part("train", *_SD, 16, False, 512, _SD1),
}
NUM_STEPS, GUIDANCE_SCALE = 50, 3.0


def part_of(name: str, tiny: bool) -> Part:
    """Returns a part.

    Args:
      name: Key of PARTS.
      tiny: Whether to use toy networks, to try the commands on a CPU.

    Returns:
      Part.
    """
    return PARTS[name]._replace(batch_size=2) if tiny else PARTS[name]
