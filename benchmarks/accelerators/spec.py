"""The spec of a part for PyTorch's side: shapes, and configs of its modules."""

import json
import pathlib
import sys

from benchmarks.accelerators.jax_side import load
from benchmarks.accelerators.parts import FEATURES, part_of
from ldm_jax.build import make_first_stage
from ldm_jax.cli import load_config
from ldm_jax.convert.diffusers.config import first_stage_config
from ldm_jax.convert.diffusers.unet_config import unet_config


def write(name: str, tiny: bool, path: pathlib.Path) -> None:
    """Writes the spec of a part.

    Args:
      name: Key of PARTS.
      tiny: Whether to use toy networks.
      path: JSON file.
    """
    part = part_of(name, tiny)
    config = load(part, tiny)
    side, batch = config.data.image_size, part.batch_size
    spec = {"kind": "sample" if part.task == "sample" else "denoiser"}
    spec["batch_size"] = batch
    spec["images"] = None if part.cached else (batch, side, side, 3)
    if part.first_stage is None:
        spec |= {"kind": "first_stage", "images": (batch, side, side, 3)}
        spec["first_stage"] = first_stage_config(config.to_dict())
        critic = config.discriminator
        spec["critic"] = {"channels": critic.channels, "layers": critic.num_layers}
        path.write_text(json.dumps(spec))
        return
    first = load_config(part.first_stage + (",tiny" if tiny else ""))
    module = make_first_stage(first.first_stage)
    spec["first_stage"] = first_stage_config(first.to_dict())
    latents = side // module.downsampling_factor
    channels = module.latent_channels
    spec["latents"] = (batch, latents, latents, channels)
    entries = config.conditions.to_dict()
    (entry,) = entries.values()
    spec["class_width"] = entry["features"] if entry["kind"] == "class_label" else 0
    spec["tokens"] = None
    width = spec["class_width"]
    if not width:
        features = entry.get("features") or FEATURES["states"][1]
        spec["tokens"] = (FEATURES["states"][0], features)
        width = features
    shape = config.to_dict() | {"data": {"image_size": latents}}
    spec["unet"] = unet_config(shape, (channels, channels), width, {})
    path.write_text(json.dumps(spec))


if __name__ == "__main__":
    write(sys.argv[1], sys.argv[2] == "tiny", pathlib.Path(sys.argv[3]))
