"""Inputs of the conditions, made of each example on the host.

The config section `data.inputs` lists them by batch key:

    inputs=dict(
        caption=dict(kind="caption", tokenizer="shapes", max_length=40),
        low_res=dict(kind="low_res", factor=4, degradation="bsrgan_light"),
    )

Each takes what it `needs` from the example, after crop, resize and mirroring, and gives
one array without batch axis, under its key. The entry of the same key in `conditions`
says what the model does with it. What an input would draw or compute, the example may
also hold: `sample.py` makes an example of what the user gives and runs the same inputs.

An instance can be pickled; what is random comes from the generator that is passed in.
"""

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image as PilImage

from ldm_jax.annotations import Bool, Shaped, UInt8
from ldm_jax.config import build, choose, to_dict
from ldm_jax.data.crops import (
    MAX_BOXES,
    SIZE_AND_CROP,
    choose_crop,
    resize_image,
    whole_size,
)
from ldm_jax.data.degradation import DEGRADATIONS, degrade
from ldm_jax.data.draw import draw_masked
from ldm_jax.data.layout import decode_layout, encode_layout
from ldm_jax.data.masks import STYLES, draw_mask
from ldm_jax.data.modalities import MODALITIES, keys_of, unpack
from ldm_jax.data.tokenizers import load_tokenizer
from ldm_jax.errors import ConfigError
from ldm_jax.images import decode, to_uint8

# Batch keys that are not inputs: the image, its class, which rows count, what failed
# or was left out.
RESERVED = ("image", "label", "mask", "failures", "notes", "error")

# Options by the names of 0.1.0.
_OLD_OPTIONS = {"min_share": "min_fraction", "max_share": "max_fraction"}


def make_inputs(section: Mapping[str, Any] | ConfigDict | None) -> dict[str, "Input"]:
    """Makes the inputs that the config section `data.inputs` lists.

    Args:
      section: Batch key -> {"kind": row of INPUTS, options of that row}; entries of the
        kind "none" are off. None for no inputs.

    Returns:
      Dict of batch key -> Input, in alphabetical order of the keys.

    Raises:
      ConfigError: On an unknown kind or option, or a wrong value.
    """
    inputs = {}
    for key, entry in sorted(to_dict(section or {}).items()):
        name, entry = f"data.inputs.{key}", dict(entry)
        if key in RESERVED:
            raise ConfigError(f"{name}: batches have another {key}; rename the input")
        kind = entry.pop("kind", None)
        if kind == "none":
            continue
        entry = {_OLD_OPTIONS.get(k, k): value for k, value in entry.items()}
        row = choose(INPUTS, kind, f"{name}.kind")
        own_key = {"key": key} if "key" in inspect.signature(row).parameters else {}
        inputs[key] = build(row, entry, name, **own_key)
    return inputs


def needed_keys(inputs: Mapping[str, "Input"]) -> list[str]:
    """Lists what the source must give besides the image.

    Args:
      inputs: Dict of batch key -> Input.

    Returns:
      Keys of the example, sorted.
    """
    return sorted({key for make in inputs.values() for key in make.needs} - {"image"})


def optional_keys(inputs: Mapping[str, "Input"]) -> list[str]:
    """Lists which of the needed keys an example may lack.

    Args:
      inputs: Dict of batch key -> Input.

    Returns:
      Keys of the example, sorted; no other input needs them.
    """
    some = {key for make in inputs.values() for key in make.optional}
    strict = {
        k for make in inputs.values() for k in make.needs if k not in make.optional
    }
    return sorted(some - strict)


def held_out_inputs(inputs: Mapping[str, "Input"]) -> dict[str, "Input"]:
    """Makes the inputs of all but training.

    Args:
      inputs: Dict of batch key -> Input.

    Returns:
      The same without what is left out at random.
    """
    return {key: make.held_out() for key, make in inputs.items()}


def inputs_of(inputs: Mapping[str, "Input"], modality: str) -> dict[str, "Input"]:
    """Finds the inputs that can be made of a modality.

    Args:
      inputs: Dict of batch key -> Input.
      modality: Row of MODALITIES.

    Returns:
      Those of `inputs`.
    """
    return {
        key: make
        for key, make in inputs.items()
        if any(modality in way for way in make.ways)
    }


def apply_inputs(
    inputs: Mapping[str, "Input"],
    example: Mapping[str, Any],
    rng: np.random.Generator | None,
) -> dict[str, Any]:
    """Makes all inputs of an example, in the order of `inputs`.

    Args:
      inputs: Dict of batch key -> Input.
      example: Dict as `transforms.transform` makes it.
      rng: NumPy generator.

    Returns:
      Dict of the example's "image" and "label", as far as there, and the inputs.

    Raises:
      ValueError: If the example lacks what an input needs, or holds something else.
    """
    result = {key: example[key] for key in ("image", "label") if key in example}
    for key, make in inputs.items():
        need = make.missing(example)
        if need is not None:
            raise ValueError(f'the example has no "{need}" for input "{key}"')
        result[key] = make(example, rng)
    return result


def count_cut(
    inputs: Mapping[str, "Input"], example: Mapping[str, Any], made: Mapping[str, Any]
) -> list[str]:
    """Says of which inputs the example held more than they keep.

    Args:
      inputs: Dict of batch key -> Input.
      example: Dict as `transforms.transform` makes it.
      made: What `apply_inputs` made of it.

    Returns:
      Their batch keys.
    """
    return [key for key, make in inputs.items() if make.is_cut(example, made[key])]


class Input:
    """What all inputs share.

    Attributes:
      needs: Keys of the example that are taken.
      optional: Those of them that an example may lack.
      ways: Of which modalities it can be made: tuples of rows of MODALITIES that go
        together, the usual tuple first.
    """

    needs: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    ways: tuple[tuple[str, ...], ...] = ()

    def check_size(self, image_size: int) -> None:
        """Checks that images of a size will do.

        Args:
          image_size: Side in pixels.

        Raises:
          ValueError: If they do not.
        """
        self._check_size(image_size)

    def __call__(
        self, example: Mapping[str, Any], rng: np.random.Generator | None
    ) -> Shaped[np.ndarray, "..."]:
        """Makes the input of one example.

        Args:
          example: Dict as `transforms.transform` makes it; images may have any size
            [H, W].
          rng: NumPy generator; needed for what is random.

        Returns:
          Array without batch axis.

        Raises:
          ValueError: If the example holds something else than expected.
        """
        return self._make(example, rng)

    def missing(self, example: Mapping[str, Any]) -> str | None:
        """Finds what an example lacks.

        Args:
          example: Dict by key.

        Returns:
          A key; None if the input can be made.
        """
        return self._missing(example)

    def held_out(self) -> "Input":
        """Makes the input of all but training.

        Returns:
          The same without what is left out at random.
        """
        return self._held_out()

    def is_cut(self, example: Mapping[str, Any], value: Any) -> bool:
        """Says whether the example held more than was kept.

        Args:
          example: Dict as `transforms.transform` makes it.
          value: What was made of it.

        Returns:
          Whether the rest was cut off.
        """
        return self._is_cut(example, value)

    def place(self, modality: str, value: Any) -> dict[str, Any]:
        """Puts a value where the input looks for it.

        Args:
          modality: Row of MODALITIES, of one of `ways`.
          value: What that row's `fit` gives.

        Returns:
          The part of an example that holds it.

        Raises:
          ValueError: If it is more than the input takes.
        """
        return self._place(modality, value)

    def size_for(
        self, modality: str, size: tuple[int, int], image_size: int
    ) -> tuple[int, int]:
        """Says to which size a modality is brought that a flag gives.

        Args:
          modality: Row of MODALITIES, of one of `ways`.
          size: (height, width) of the samples in pixels.
          image_size: Side of the images in training, in pixels.

        Returns:
          (height, width) in pixels.
        """
        return self._size_for(modality, size, image_size)

    def mask_of(
        self, value: Shaped[np.ndarray, "..."]
    ) -> Bool[np.ndarray, "H W 1"] | None:
        """Finds the region of the image that is to be filled.

        Args:
          value: What the input made, without batch axis.

        Returns:
          bool [H, W, 1], true where it is to be filled; None if the input has no mask.
        """
        return self._mask_of(value)

    def draw(
        self,
        value: Shaped[Any, "..."],
        shape: tuple[int, int],
        names: Sequence[str] = (),
    ) -> UInt8[np.ndarray, "height width 3"] | None:
        """Draws the input.

        Args:
          value: What the input made, without batch axis.
          shape: (height, width) of the result in pixels.
          names: Names of the classes of boxes, if known.

        Returns:
          uint8 [height, width, 3]; None where there is nothing to draw.
        """
        return self._draw(np.asarray(value), shape, names)

    # What kinds of inputs replace.

    def _check_size(self, image_size):
        pass

    def _missing(self, example):
        return next((key for key in self.needs if key not in example), None)

    def _held_out(self):
        return self

    def _is_cut(self, example, value):
        return False

    def _make(self, example, rng):
        raise NotImplementedError

    def _place(self, modality, value):
        return unpack(modality, value)

    def _size_for(self, modality, size, image_size):
        return size

    def _mask_of(self, value):
        return None

    def _draw(self, value, shape, names):
        return None


class Caption(Input):
    """Token ids of a caption, int32 [max_length].

    Where an example has several captions, one is drawn: first one of `keys`, by
    `weights`, of those that the example has, then one of that key's captions. The first
    ids of what is too long are kept.

    Attributes:
      tokenizer: The Tokenizer, which knows `vocab_size`, `max_length`, `null_ids`.
      fallback: Caption of examples that have none, or None.
    """

    ways = (("caption",),)

    def __init__(
        self,
        tokenizer: str,
        max_length: int = 77,
        pad_id: int | None = None,
        keys: Sequence[str] = ("caption",),
        weights: Sequence[float] = (),
        dropout: float = 0.0,
        fallback: str | None = None,
    ) -> None:
        """Loads the tokenizer.

        Args:
          tokenizer: Its name; see `tokenizers.load_tokenizer`.
          max_length: Number of tokens.
          pad_id: What fills the rest, where not the tokenizer's own.
          keys: Keys of the example that hold captions.
          weights: How often each of them is drawn, of any sum; without, all alike.
          dropout: Fraction of the training examples whose caption is empty.
          fallback: Caption of examples that have none; None makes that an error.
        """
        _require(
            len(weights) in (0, len(keys)) and len(set(keys)) == len(keys) > 0,
            f"keys={tuple(keys)} and weights={tuple(weights)}: give different keys, "
            "and a weight for each, or no weights",
        )
        _require(
            all(weight > 0 for weight in weights),
            f"weights must be above 0, got {tuple(weights)}: leave out the keys that "
            "are never to be drawn",
        )
        _require(0 <= dropout < 1, f"dropout must be in [0, 1), got {dropout}")
        self.tokenizer = load_tokenizer(tokenizer, max_length, pad_id)
        self.needs = tuple(keys)
        lenient = fallback is not None or len(keys) > 1
        self.optional = self.needs if lenient else ()
        self._weights = dict(zip(keys, weights or [1.0] * len(keys), strict=True))
        self._dropout, self.fallback = dropout, fallback

    def _held_out(self):
        held_out = copy.copy(self)
        held_out._dropout = 0.0
        return held_out

    def _missing(self, example):
        there = self.fallback is not None or self._captions(example)
        return None if there else self.needs[0]

    def _captions(self, example):
        """Key -> captions, of the keys that the example has."""
        found = {key: _texts(example.get(key)) for key in self.needs}
        if not any(found.values()):
            # Where a flag or a file of prompts puts it, whatever data call it.
            found = {"caption": _texts(example.get("caption"))}
        return {key: texts for key, texts in found.items() if texts}

    def _make(self, example, rng):
        captions = self._captions(example)
        if self._dropout and rng.random() < self._dropout:
            return self.tokenizer([""])[0]
        if not captions:
            return self.tokenizer([self.fallback])[0]
        keys, at = list(captions), 0
        if len(keys) > 1:
            ends = np.cumsum([self._weights[key] for key in keys])
            at = np.searchsorted(ends[:-1], rng.random() * ends[-1], "right")
        texts = captions[keys[at]]
        # A caption alone needs no generator.
        text = texts[0] if len(texts) == 1 else texts[rng.integers(len(texts))]
        return self.tokenizer([text])[0]

    def _is_cut(self, example, value):
        texts = sum(self._captions(example).values(), [])
        return any(
            self.tokenizer.is_too_long(text)
            and np.array_equal(self.tokenizer([text])[0], value)
            for text in texts
        )


def _texts(captions):
    """Captions of a key as a list; what is missing is left out."""
    if captions is None:
        return []
    if isinstance(captions, str | bytes):
        return [captions]
    if not isinstance(captions, list | tuple | np.ndarray) or np.ndim(captions) == 0:
        raise ValueError(f"a caption is {captions!r}, which is no text")
    texts = [text for text in captions if text is not None]
    for text in texts:
        if not isinstance(text, str | bytes):
            raise ValueError(f"a caption is {text!r}, which is no text")
    return texts


class Layout(Input):
    """Token ids of "boxes" and "box_labels", int32 [3 * max_objects + 2].

    Attributes:
      vocab_size: Number of ids.
      max_objects: Largest number of objects.
      max_length: Number of tokens.
    """

    needs = ("boxes", "box_labels")
    ways = (("layout",),)

    def __init__(
        self,
        vocab_size: int = 8192,
        max_objects: int = 30,
        num_classes: int | None = None,
        order: str = "random",
    ) -> None:
        """Keeps the form of the tokens; see `layout.py`.

        Args:
          vocab_size: Number of ids, shared by classes and corners.
          max_objects: Largest number of objects.
          num_classes: Number of classes, to refuse labels beyond; None does not check.
          order: Row of ORDERS, of the objects; that of CompVis is random.
        """
        _require(
            vocab_size > max(num_classes or 0, 4),
            f"vocab_size={vocab_size} is too small: it must exceed the number of "
            "classes, and 4",
        )
        _require(
            1 <= max_objects <= MAX_BOXES,
            f"max_objects must be from 1 to {MAX_BOXES}, got {max_objects}",
        )
        self.vocab_size, self.max_objects = vocab_size, max_objects
        self.max_length = 3 * max_objects + 2
        self._num_classes = num_classes
        self._order = choose(ORDERS, order, "order")

    def _make(self, example, rng):
        boxes, labels = np.asarray(example["boxes"]), np.asarray(example["box_labels"])
        _require(
            self._num_classes is None or labels.max(initial=-1) < self._num_classes,
            f"box label {labels.max(initial=-1)} is out of range: the layout has "
            f"num_classes={self._num_classes}",
        )
        order = self._order(boxes, rng)
        return encode_layout(
            boxes[order], labels[order], self.vocab_size, self.max_objects
        )

    def _place(self, modality, value):
        count = np.sum(value[1] >= 0)
        _require(
            count <= self.max_objects,
            f"a layout has {count} objects; this model is conditioned on up to "
            f"{self.max_objects}",
        )
        return super()._place(modality, value)

    def _draw(self, value, shape, names):
        boxes, labels, _ = decode_layout(value, self.vocab_size)
        return MODALITIES["layout"].draw((boxes, labels), shape, names)


def _shuffled(boxes, rng):
    return rng.permutation(len(boxes))


def _as_given(boxes, rng):
    return np.arange(len(boxes))


def _by_area(boxes, rng):
    top, left, bottom, right = boxes.reshape(-1, 4).T
    return np.argsort(-(bottom - top) * (right - left), kind="stable")


# In which order the objects of a layout come: (boxes [n, 4], rng) -> indices [n].
ORDERS = {
    "random": _shuffled,
    "given": _as_given,
    # The largest first: each place of the sequence has a meaning of its own.
    "area": _by_area,
}


class Map(Input):
    """A map of any kind, int32 [H, W] or float32 [H, W, C], as its modality has it."""

    def __init__(
        self, key: str, modality: str | None = None, stretch: bool = False
    ) -> None:
        """Keeps which map.

        Args:
          key: Key of the input.
          modality: Row of MODALITIES; None is the key of the input.
          stretch: Whether to stretch each map to [-1, 1].
        """
        name = modality or key
        choose(MODALITIES, name, "modality")
        self._modality, self._stretch = name, stretch
        self.needs, self.ways = keys_of(name), ((name,),)

    def _make(self, example, rng):
        values = np.asarray(example[self.needs[0]])
        if values.ndim not in (2, 3) or values.dtype.kind not in "iuf":
            raise ValueError(
                f'"{self._modality}" has {values.dtype} {list(values.shape)}: a map is '
                "integers [H, W] or floats [H, W, C]"
            )
        if not self._stretch:
            return values.astype(np.float32 if values.dtype.kind == "f" else np.int32)
        values = values.astype(np.float32)
        low, high = values.min(), values.max()
        # A map that is the same everywhere becomes the middle.
        return (2 * values - low - high) / (high - low if high > low else 1)

    def _draw(self, value, shape, names):
        draw = MODALITIES[self._modality].draw
        return None if draw is None else draw(value, shape, names)


class Segmentation(Map):
    """The map of classes "segmentation", int32 [H, W]."""

    def __init__(self) -> None:
        """Takes that map."""
        super().__init__("segmentation")


class Depth(Map):
    """The map "depth", stretched to [-1, 1]: float32 [H, W, 1].

    Stable Diffusion 2 stretches it once it is as small as the latents, where the
    extremes of small things are gone: its condition says `stretch`.
    """

    def __init__(self) -> None:
        """Takes that map."""
        super().__init__("depth", stretch=True)


class LowRes(Input):
    """A small version of the image, float32 [H / factor, W / factor, 3] in [-1, 1].

    It is the example's "low_res", uint8 [h, w, 3], where there is one, brought to that
    size if there is an image too; else the image, degraded.

    Attributes:
      factor: Size of the image over that of the input.
      degradation: Row of DEGRADATIONS.
    """

    ways = (("low_res",), ("image",))

    def __init__(self, factor: int = 4, degradation: str = "bicubic") -> None:
        """Keeps how to degrade.

        Args:
          factor: Size of the image over that of the input, 2 to 8.
          degradation: Row of DEGRADATIONS.
        """
        _require(factor in range(2, 9), f"factor must be 2 to 8, got {factor}")
        choose(DEGRADATIONS, degradation, "degradation")
        self.factor, self.degradation = factor, degradation

    def _check_size(self, image_size):
        _require(
            image_size % self.factor == 0,
            f"image_size={image_size} does not divide by the factor {self.factor}",
        )

    def _make(self, example, rng):
        small, image = example.get("low_res"), example.get("image")
        if small is None:
            _require(image is not None, 'the example has neither "low_res" nor "image"')
            small = degrade(image, self.factor, self.degradation, rng)
        elif image is not None:
            height, width = (n // self.factor for n in image.shape[:2])
            small = _resize(small, height, width)
        return _to_float(small)

    def _size_for(self, modality, size, image_size):
        factor = self.factor if modality == "low_res" else 1
        return tuple(side // factor for side in size)

    def _draw(self, value, shape, names):
        return MODALITIES["low_res"].draw(to_uint8(value), shape, names)


class MaskedImage(Input):
    """The image without the region to fill, and the mask: float32 [H, W, 4].

    Channels 0 to 2 are the image in [-1, 1] and `fill` under the mask, channel 3 is 1
    under the mask and 0 elsewhere. The mask is that of the example, if there is one,
    [H, W] or [H, W, 1], true or >= 0.5 where the image is to be filled; else it is
    drawn.
    """

    needs = ("image",)
    ways = (("image", "mask"),)

    def __init__(
        self,
        style: str = "mixed",
        min_fraction: float = 0.05,
        max_fraction: float = 0.6,
        fill: float = -1.0,
    ) -> None:
        """Keeps how to draw masks.

        Args:
          style: Row of masks.STYLES.
          min_fraction: Least fraction of the image that the mask takes.
          max_fraction: Largest fraction, at least 0.1 more.
          fill: Value under the mask: -1 in CompVis, 0 in Stable Diffusion.
        """
        choose(STYLES, style, "style")
        _require(
            0 <= min_fraction <= max_fraction <= 1
            and max_fraction - min_fraction > 0.099,
            "the fractions must be in [0, 1] and max_fraction >= min_fraction + 0.1, "
            f"got {min_fraction} and {max_fraction}",
        )
        self._style, self._fill = style, fill
        self._fractions = min_fraction, max_fraction

    def _make(self, example, rng):
        image, mask = example["image"], example.get("mask")
        if mask is None:
            mask = draw_mask(*image.shape[:2], rng, self._style, *self._fractions)
        mask = np.asarray(mask)
        _require(
            mask.shape in (image.shape[:2], (*image.shape[:2], 1)),
            f"the mask is {mask.shape}, the image {image.shape}: give both one size",
        )
        mask = mask.reshape(*image.shape[:2], 1) >= 0.5
        masked = np.where(mask, np.float32(self._fill), _to_float(image))
        return np.concatenate([masked, mask], axis=-1, dtype=np.float32)

    def _mask_of(self, value):
        return value[..., 3:] >= 0.5

    def _draw(self, value, shape, names):
        return draw_masked(to_uint8(value[..., :3]), self._mask_of(value), shape)


class Image(Input):
    """An image as the condition, such as a style: uint8 [H, W, 3].

    It is what the example has under the input's own key, uint8 or an encoded file, cut
    at the centre and resized; else the example's image. It is another image, so it
    follows neither crop nor mirroring of that one.
    """

    ways = (("style",), ("image",))

    def __init__(self, key: str, size: int | None = None) -> None:
        """Keeps where to look.

        Args:
          key: Key of the input.
          size: Side of the result in pixels; None is the height and width of the
            example's image, or of this one if there is no other.
        """
        self._key, self._size = key, size

    def _make(self, example, rng):
        image, own = example.get("image"), example.get(self._key)
        if own is None:
            _require(image is not None, f'the example has no "{self._key}" nor "image"')
            own = image
        own = np.asarray(decode(own))
        height, width = (own if image is None else image).shape[:2]
        return _resize(own, self._size or height, self._size or width)

    def _place(self, modality, value):
        return {self._key if modality == "style" else modality: value}

    def _size_for(self, modality, size, image_size):
        return (image_size, image_size) if modality == "style" else size

    def _draw(self, value, shape, names):
        return MODALITIES["style"].draw(value, shape, names)


class SizeAndCrop(Input):
    """Where an image comes from, SDXL's micro-conditioning: float32 [6] in pixels.

    Height and width of the original, top and left of the crop in the image as it was
    resized (and mirrored), height and width of the result (Podell et al. 2023, Sec.
    2.2). Samples are by default whole: the original has the size of the result.
    """

    ways = ((),)

    def _make(self, example, rng):
        found = example.get(SIZE_AND_CROP)
        if found is None:
            _require("image" in example, 'the example has no "image"')
            found = whole_size(example["image"].shape[:2])
        return np.asarray(found, np.float32)


class Feature(Input):
    """Any array that the source holds, such as an embedding, as float32."""

    ways = (("features",),)

    def __init__(self, key: str, feature: str | None = None) -> None:
        """Keeps where to look.

        Args:
          key: Key of the input.
          feature: The source's name for it; None is the key of the input.
        """
        self._key = key
        self.needs = (feature or key,)

    def _make(self, example, rng):
        value = example.get(self._key)
        return np.asarray(example[self.needs[0]] if value is None else value, "f4")

    def _place(self, modality, value):
        return {self.needs[0]: value}


def _require(condition, message):
    if not condition:
        raise ValueError(message)


def _to_float(image):
    return image.astype(np.float32) / np.float32(127.5) - 1


def _resize(image, height, width):
    """Cuts an image at the centre to the shape asked for and resizes it."""
    if image.shape[:2] == (height, width):
        return image
    image, size = PilImage.fromarray(image), (height, width)
    return resize_image(image, choose_crop(*image.size, size), size)


# What is made of an example, by the name that configs use.
INPUTS = {
    "caption": Caption,
    "layout": Layout,
    "map": Map,
    "segmentation": Segmentation,
    "depth": Depth,
    "low_res": LowRes,
    "masked_image": MaskedImage,
    "image": Image,
    "size_and_crop": SizeAndCrop,
    "feature": Feature,
}
