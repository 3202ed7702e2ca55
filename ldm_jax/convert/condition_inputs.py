"""Makes the inputs of a converted model's conditions, for our configs.

Other formats record the network for captions but not its tokenizer; that is deduced,
e.g. from the size of the vocabulary.
"""

from collections.abc import Mapping
from typing import Any


def inputs_for(
    conditions: Mapping[str, Mapping[str, Any]], factor: int
) -> dict[str, dict[str, Any]]:
    """Makes the config section `data.inputs`: how each condition's input is made.

    Args:
      conditions: Config section, with the batch keys of `compvis.conditions`.
      factor: Downsampling factor of the first stage; 1 if it is not in the file.

    Returns:
      Config section: batch key -> {"kind": ..., its options}. A class label needs no
      entry. Captions of an unknown vocabulary and small images for an unknown first
      stage have no entry, as their tokenizer and their size are unknown.
    """
    made = {
        key: _MAKE[key](entry, factor)
        for key, entry in conditions.items()
        if key in _MAKE
    }
    return {key: section for key, section in made.items() if section}


def _caption(entry, factor):
    del factor
    tokenizer, length = _TOKENIZERS.get(entry["vocab_size"]), entry["max_length"]
    if tokenizer is None:
        return None
    section = dict(kind="caption", tokenizer=tokenizer, max_length=length)
    if entry["kind"] == "clip_text" and entry.get("null_ids"):
        # OpenCLIP (Stable Diffusion 2) pads captions with zeros, OpenAI's tokenizer
        # with the end token.
        section["pad_id"] = entry["null_ids"][-1]
    return section


def _layout(entry, factor):
    del factor
    # Three tokens per object and two for the crop.
    objects = (entry["max_length"] - 2) // 3
    return dict(kind="layout", vocab_size=entry["vocab_size"], max_objects=objects)


def _masked_image(entry, factor):
    del factor
    # Masked pixels are grey in Stable Diffusion and black in CompVis's own model.
    fill = 0.0 if entry["mask_first"] else -1.0
    return dict(kind="masked_image", style="mixed", fill=fill)


def _low_res(entry, factor):
    del entry
    if factor == 1:
        return None
    return dict(kind="low_res", factor=factor, degradation="bsrgan_light")


# Size of the vocabulary -> tokenizer of the published text encoders.
_TOKENIZERS = {30522: "bert-base-uncased", 49408: "openai/clip-vit-large-patch14"}

# Batch key -> function: (entry, factor) -> section, or None if it is unknown.
_MAKE = {
    "caption": _caption,
    "boxes": _layout,
    "low_res": _low_res,
    "segmentation": lambda entry, factor: dict(kind="segmentation"),
    "masked_image": _masked_image,
    "source_image": lambda entry, factor: dict(kind="image"),
    "depth": lambda entry, factor: dict(kind="depth"),
    "embedding": lambda entry, factor: dict(kind="feature", feature="embedding"),
}
