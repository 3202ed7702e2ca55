"""What the inputs of a converted model's conditions are made of, for our configs.

Other formats say which network takes a caption, not which tokenizer makes its tokens;
that follows from the size of the vocabulary, and the like.
"""

from collections.abc import Mapping
from typing import Any


def inputs_for(
    conditions: Mapping[str, Mapping[str, Any]], factor: int
) -> dict[str, dict[str, Any]]:
    """Makes the config section `data.inputs`: how each condition's input is made.

    Args:
      conditions: Config section, with the batch keys of `compvis.conditions`.
      factor: Downsampling factor of the first stage; 1 where it lies elsewhere.

    Returns:
      Config section: batch key -> {"kind": ..., its options}. A class label needs none;
      captions of an unknown vocabulary and small images for an unknown first stage have
      none, as their tokenizer and their size are not known.
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
        # OpenCLIP, of Stable Diffusion 2, fills captions with zeros, where OpenAI's
        # tokenizer repeats the end.
        section["pad_id"] = entry["null_ids"][-1]
    return section


def _layout(entry, factor):
    del factor
    # Three tokens per object and two for the crop.
    objects = (entry["max_length"] - 2) // 3
    return dict(kind="layout", vocab_size=entry["vocab_size"], max_objects=objects)


def _masked_image(entry, factor):
    del factor
    # What is masked is grey in Stable Diffusion and black in CompVis's own model.
    fill = 0.0 if entry["mask_first"] else -1.0
    return dict(kind="masked_image", style="mixed", fill=fill)


def _low_res(entry, factor):
    del entry
    if factor == 1:
        return None
    return dict(kind="low_res", factor=factor, degradation="bsrgan_light")


# By size of the vocabulary, what the published text encoders were trained with.
_TOKENIZERS = {30522: "bert-base-uncased", 49408: "openai/clip-vit-large-patch14"}

# By batch key, (entry, factor) -> section, or None where it is not known.
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
