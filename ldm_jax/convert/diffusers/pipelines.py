"""The parts of a pipeline of diffusers besides networks: its class, index and files.

A model is written with a pipeline class only if that can run it: each has conditions of
its own and assumes some sizes. Any other model is a DiffusionPipeline, whose parts are
opened one by one. Folders without weights, such as a tokenizer's, are kept unchanged.
"""

from collections.abc import Collection, Mapping
from typing import Any

from ldm_jax.build import make_first_stage
from ldm_jax.convert.carried import is_plain
from ldm_jax.convert.hints import SECTION, hints_of
from ldm_jax.convert.model import Model
from ldm_jax.errors import ConversionError
from ldm_jax.store import Place, is_dir, is_file

# The oldest version that reads everything that we write.
VERSION = "0.30.0"
# A pipeline whose parts are opened one by one.
NO_CLASS = "DiffusionPipeline"
# Parts that are networks which we read.
NETWORKS = ("unet", "vae", "vqvae", "text_encoder", "bert")
# Parts that do not change images: checkers of finished images and their preprocessing,
# and the tokenizer, which is loaded elsewhere.
_BESIDE = ("safety_checker", "feature_extractor", "image_processor", "tokenizer")
# Maximum total bytes of the files that are kept.
_MOST = 64 * 2**20
_WEIGHTS = (".safetensors", ".bin", ".pt", ".ckpt", ".msgpack", ".h5", ".onnx", ".npz")


def parts_of(index: Mapping[str, Any]) -> dict[str, str]:
    """Lists the parts of a pipeline.

    Args:
      index: Its model_index.json.

    Returns:
      Name of a part -> its class; null entries are left out.

    Raises:
      ConversionError: If the pipeline is not one U-Net with at most one text encoder,
        or the name of a part leads out of the pipeline's folder.
    """
    parts = {
        key: str(value[1])
        for key, value in index.items()
        if isinstance(value, list) and len(value) == 2 and value[0] is not None
    }
    name = index.get("_class_name")
    for key in parts:
        if not is_plain(key):
            raise ConversionError(
                f"the pipeline {name} has the part {key!r:.80}, whose folder would lie "
                "outside of it: do not trust this model_index.json"
            )
    if "unet" not in parts:
        found = ", ".join(f"{key} ({kind})" for key, kind in parts.items())
        raise ConversionError(
            f"the pipeline {name} has no unet, but {found or 'no parts'}: only U-Nets "
            "are supported; give the folder of one part to convert that alone"
        )
    others = [
        f"{key} ({kind})"
        for key, kind in parts.items()
        if key not in NETWORKS and key.startswith(("unet", "text_encoder", "prior"))
    ]
    if others or {"text_encoder", "bert"} <= parts.keys():
        raise ConversionError(
            f"the pipeline {name} has more networks than are supported: "
            f"{', '.join(others) or 'two text encoders'}"
        )
    return parts


def read_files(folder: Place, parts: Collection[str]) -> dict[str, bytes]:
    """Reads the files of the parts that have no weights.

    Args:
      folder: Folder of the pipeline.
      parts: Names of its parts that are not networks which we read.

    Returns:
      Path inside the pipeline, with "/" -> the file's bytes.
    """
    files, total = {}, 0
    for name in sorted(parts):
        if not is_dir(folder / name):
            continue
        found = [path for path in sorted((folder / name).iterdir()) if is_file(path)]
        size = sum(path.stat().st_size for path in found)
        if any(path.suffix in _WEIGHTS for path in found) or total + size > _MOST:
            continue
        total += size
        files |= {f"{name}/{path.name}": path.read_bytes() for path in found}
    return files


def note_left_out(model: Model, parts: Mapping[str, str]) -> None:
    """Records which parts of a pipeline are neither read nor kept.

    Args:
      model: Model that was read from it; its `left_out` is extended.
      parts: See `parts_of`.
    """
    carried = {path.partition("/")[0] for path in model.files}
    for name, kind in parts.items():
        if name not in (*NETWORKS, "scheduler", *carried):
            model.left_out[f"{name} ({kind})"] = name not in _BESIDE


def index_of(
    model: Model, configs: Mapping[str, Mapping[str, Any]], scheduler: str
) -> dict[str, Any]:
    """Makes the model_index.json of a pipeline.

    Args:
      model: Model of a second stage.
      configs: Name of a network -> its config.json.
      scheduler: Class of its scheduler.

    Returns:
      The model_index.json; parts that were left out when it was read are null.
    """
    kept = model.origin.get("model_index", {})
    carried = {path.partition("/")[0] for path in model.files}
    index: dict[str, Any] = {
        "_class_name": pipeline_class(model, configs),
        "_diffusers_version": VERSION,
    }
    for key, value in kept.items():
        part = isinstance(value, list) and value[:1] != [None]
        index[key] = value if not part or key in carried else [None, None]
    for name, config in configs.items():
        library = "transformers" if name == "text_encoder" else "diffusers"
        library = "latent_diffusion" if name == "bert" else library
        found = config.get("_class_name") or config["architectures"][0]
        index[name] = [library, found]
    if "tokenizer" in carried and "tokenizer" not in kept:
        index["tokenizer"] = ["transformers", "PreTrainedTokenizerFast"]
    index["scheduler"] = ["diffusers", scheduler]
    if index["_class_name"].startswith("StableDiffusion"):
        for name in _ABSENT.get(index["_class_name"], _UNCHECKED):
            index.setdefault(name, [None, None])
        if index.get("safety_checker") == [None, None]:
            index["requires_safety_checker"] = False
    return index | {f"_{SECTION}": hints_of(model)}


def pipeline_class(model: Model, configs: Mapping[str, Mapping[str, Any]]) -> str:
    """Finds a pipeline class that can run a model.

    Args:
      model: Model of a second stage.
      configs: Name of a network -> its config.json.

    Returns:
      The class that it was read with, or one that can run it, or NO_CLASS.
    """
    kept = model.origin.get("model_index", {}).get("_class_name")
    if kept:
        return kept
    first = model.first_stage
    if first is None or model.statistics.per_channel or model.statistics.shift:
        return NO_CLASS
    entries = model.config["conditions"]
    kinds = sorted(entry["kind"] for entry in entries.values())
    stable = [kind for kind in kinds if kind != "clip_text"]
    classes = {config.get("_class_name") for config in configs.values()}
    if not kinds:
        return "LDMPipeline"
    if kinds == ["text"]:
        return "LDMTextToImagePipeline" if _fits_text(model) else NO_CLASS
    if kinds == ["raw"] and set(entries) == {"low_res"}:
        return "LDMSuperResolutionPipeline" if _fits_map(model, configs) else NO_CLASS
    if len(kinds) == len(stable) + 1 and "AutoencoderKL" in classes:
        found, fits = _STABLE.get(tuple(stable), (NO_CLASS, None))
        return found if fits is None or fits(model, configs["unet"]) else NO_CLASS
    return NO_CLASS


def _fits_inpainting(model, unet):
    """Whether latents have 4 channels, as StableDiffusionInpaintPipeline needs."""
    del model
    return unet["in_channels"] == 9


def _fits_depth(model, unet):
    """Whether depth is processed as in StableDiffusionDepth2ImgPipeline.

    That resizes it to the size of the latents, by bicubic interpolation, and then
    stretches its range of values.
    """
    del unet
    entry = model.config["conditions"].get("depth", {})
    module = make_first_stage(model.first_stage.config["first_stage"])
    options = ("num_stages", "method", "multiplier", "stretch")
    found = [entry.get(name) for name in options]
    return found == [1, "bicubic", 1 / module.downsampling_factor, True]


def _fits_text(model):
    """Whether there are 77 tokens and a factor of 8, as in LDMTextToImagePipeline."""
    (entry,) = model.config["conditions"].values()
    module = make_first_stage(model.first_stage.config["first_stage"])
    return module.downsampling_factor == 8 and entry.get("max_length", 77) == 77


def _fits_map(model, configs):
    """Whether LDMSuperResolutionPipeline fits: unscaled latents, half the channels."""
    unet = configs["unet"]
    whole = unet["in_channels"] == 2 * unet["out_channels"]
    return whole and model.statistics.scale == 1.0


# Kinds of conditions besides the caption -> (class, function: (model, the U-Net's
# config.json) -> whether the class can run it).
_STABLE = {
    (): ("StableDiffusionPipeline", None),
    ("encoded",): ("StableDiffusionInstructPix2PixPipeline", None),
    ("masked_image",): ("StableDiffusionInpaintPipeline", _fits_inpainting),
    ("spatial",): ("StableDiffusionDepth2ImgPipeline", _fits_depth),
}
# Parts that a class expects and that an export does not have.
_UNCHECKED = ("safety_checker", "feature_extractor")
_ABSENT = {"StableDiffusionDepth2ImgPipeline": ("depth_estimator", "feature_extractor")}
