"""The experiments of `configs`, and what their docstrings list of each row."""

import importlib
import re
from typing import NamedTuple

from tests.runs import ROOT

# Others of the folder are no experiments.
NAMES = sorted(
    path.stem
    for path in (ROOT / "configs").glob("*.py")
    if "\ndef get_config(" in path.read_text(encoding="utf-8")
)

# The experiments that train each of the released second stages, by its manifest.
RELEASED = {
    "ldm_celebahq_ffhq_lsun_bedrooms_vq_f4": [
        "unconditional:celebahq",
        "unconditional:ffhq",
        "unconditional:bedrooms",
    ],
    "ldm_class_imagenet_v2_vq_f4": ["imagenet_class:f4"],
    "ldm_class_imagenet_vq_f8": ["imagenet_class:f8"],
    "ldm_inpainting_big_vq_f4": ["inpainting:big"],
    "ldm_layout_openimages_vq_f4": ["layout_to_image:openimages"],
    "ldm_lsun_churches_kl_f8": ["unconditional:churches"],
    "ldm_semantic_synthesis_vq_f4": ["semantic_synthesis:256"],
    "ldm_super_resolution_vq_f4": ["super_resolution:bsr"],
    "ldm_text_1p4b_kl_f8": ["text_to_image:laion"],
    "ldm_text_256_vq_f4": ["text_to_image:conceptual"],
    "rdm_768_vq": ["retrieval:768"],
}


class Listed(NamedTuple):
    """A second stage's line of the table in its docstring.

    Attributes:
      first_stage: Experiment that trains its first stage: "autoencoder_kl:f8".
      unet: Parameters of the U-Net.
      conditions: Parameters of the conditioners.
      batch_size: Global batch size.
      num_steps: Length of the training.
      learning_rate: Absolute learning rate.
    """

    first_stage: str
    unet: int
    conditions: int
    batch_size: int
    num_steps: int
    learning_rate: float


def module(name):
    """The module of an experiment."""
    return importlib.import_module(f"configs.{name}")


def specs(name):
    """The experiments of a module: one per row ("autoencoder_kl:f8"), or itself."""
    rows = getattr(module(name), "ROWS", None)
    return [f"{name}:{row}" for row in rows] if rows else [name]


def load(spec, variant=""):
    """The config of an experiment."""
    name, _, row = spec.partition(":")
    return module(name).get_config(",".join(filter(None, (row, variant))))


def line(spec):
    """The words of an experiment's line in the table of its docstring, or None."""
    name, _, row = spec.partition(":")
    found = row and re.search(
        rf"^{row} +(.*[\d-])$", module(name).__doc__, re.MULTILINE
    )
    return found[1].replace(",", "").split() if found else None


def listed(spec):
    """What a published second stage's docstring lists, or None of another config."""
    words = line(spec)
    if not words or not re.fullmatch(r"(kl|vq):\w+", words[0]):
        return None
    first, *numbers, rate = words
    return Listed(f"autoencoder_{first}", *map(int, numbers), float(rate))
