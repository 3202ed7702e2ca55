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

import inspect

import numpy as np
from PIL import Image as PilImage

from ldm_jax.config import build, choose, to_dict
from ldm_jax.data.degradation import DEGRADATIONS, degrade
from ldm_jax.data.layout import encode_layout
from ldm_jax.data.masks import STYLES, draw_mask
from ldm_jax.data.tokenizers import load_tokenizer
from ldm_jax.data.transforms import MAX_BOXES, choose_crop, resize_image
from ldm_jax.errors import ConfigError
from ldm_jax.images import decode

# Batch keys that are no inputs: the picture, its class, which rows count, what failed.
RESERVED = ("image", "label", "mask", "failures", "error")


def make_inputs(section):
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
        row = choose(INPUTS, kind, f"{name}.kind")
        own_key = {"key": key} if "key" in inspect.signature(row).parameters else {}
        inputs[key] = build(row, entry, name, **own_key)
    return inputs


def needed_keys(inputs):
    """Returns the keys that the source must give for `inputs`, sorted; not "image"."""
    return sorted({key for make in inputs.values() for key in make.needs} - {"image"})


def apply_inputs(inputs, example, rng):
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
        for need in make.needs:
            if need not in example:
                raise ValueError(f'the example has no "{need}" for input "{key}"')
        result[key] = make(example, rng)
    return result


class Input:
    """What all inputs share.

    Attributes:
      needs: Keys of the example that must be there.
    """

    needs = ()

    def check_size(self, image_size):
        """Raises ValueError if images of `image_size` pixels a side do not do."""

    def __call__(self, example, rng):
        """Makes the input of one example.

        Args:
          example: Dict as `transforms.transform` makes it; pictures may have any size
            [H, W].
          rng: NumPy generator.

        Returns:
          Array without batch axis.

        Raises:
          ValueError: If the example holds something else than expected.
        """
        raise NotImplementedError


class Caption(Input):
    """Token ids of "caption", int32 [max_length].

    Where an example has several captions, one is drawn.

    Attributes:
      tokenizer: The Tokenizer, which knows `vocab_size`, `max_length`, `null_ids`.
    """

    needs = ("caption",)

    def __init__(self, tokenizer, max_length=77, pad_id=None):
        """Loads the tokenizer; see `tokenizers.load_tokenizer`."""
        self.tokenizer = load_tokenizer(tokenizer, max_length, pad_id)

    def __call__(self, example, rng):
        caption = example["caption"]
        if not isinstance(caption, str | bytes):
            caption = caption[rng.integers(len(caption))]
        return self.tokenizer([caption])[0]


class Layout(Input):
    """Token ids of "boxes" and "box_labels", int32 [3 * max_objects + 2].

    Attributes:
      vocab_size: Number of ids.
      max_length: Number of tokens.
    """

    needs = ("boxes", "box_labels")

    def __init__(
        self, vocab_size=8192, max_objects=30, num_classes=None, order="random"
    ):
        """Keeps the form of the tokens; see `layout.py`.

        Args:
          vocab_size: Number of ids, shared by classes and corners.
          max_objects: Largest number of objects.
          num_classes: Number of classes, to refuse labels beyond; None does not check.
          order: Row of ORDERS, of the objects; the original's is random.
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

    def __call__(self, example, rng):
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


def _shuffled(boxes, rng):
    return rng.permutation(len(boxes))


def _as_given(boxes, rng):
    return np.arange(len(boxes))


def _by_area(boxes, rng):
    top, left, bottom, right = boxes.reshape(-1, 4).T
    return np.argsort(-(bottom - top) * (right - left), kind="stable")


# In which objects of a layout come: (boxes [n, 4], rng) -> indices [n].
ORDERS = {
    "random": _shuffled,
    "given": _as_given,
    # The largest first: each place of the sequence has a meaning of its own.
    "area": _by_area,
}


class Segmentation(Input):
    """The map of classes "segmentation", int32 [H, W]."""

    needs = ("segmentation",)

    def __call__(self, example, rng):
        return np.asarray(example["segmentation"], np.int32)


class Depth(Input):
    """The map "depth", stretched to [-1, 1]: [H, W, 1].

    Stable Diffusion 2 stretches it once it is as small as the latents, where the
    extremes of small things are gone.
    """

    needs = ("depth",)

    def __call__(self, example, rng):
        depth = np.asarray(example["depth"], np.float32)
        low, high = depth.min(), depth.max()
        # A flat map says nothing: the middle.
        return (2 * depth - low - high) / (high - low if high > low else 1)


class LowRes(Input):
    """A small version of the picture, float32 [H / factor, W / factor, 3] in [-1, 1].

    It is the example's "low_res", uint8 [h, w, 3], where there is one, brought to that
    size if there is a picture too; else the picture, degraded.
    """

    def __init__(self, factor=4, degradation="bicubic"):
        """Keeps how to degrade.

        Args:
          factor: Size of the picture over that of the input, 2 to 8.
          degradation: Row of DEGRADATIONS.
        """
        _require(factor in range(2, 9), f"factor must be 2 to 8, got {factor}")
        choose(DEGRADATIONS, degradation, "degradation")
        self.factor, self.degradation = factor, degradation

    def check_size(self, image_size):
        _require(
            image_size % self.factor == 0,
            f"image_size={image_size} does not divide by the factor {self.factor}",
        )

    def __call__(self, example, rng):
        small, image = example.get("low_res"), example.get("image")
        if small is None:
            _require(image is not None, 'the example has neither "low_res" nor "image"')
            small = degrade(image, self.factor, self.degradation, rng)
        elif image is not None:
            height, width = (n // self.factor for n in image.shape[:2])
            small = _resize(small, height, width)
        return _to_float(small)


class MaskedImage(Input):
    """The picture with a hole, and the hole: float32 [H, W, 4].

    Channels 0 to 2 are the picture in [-1, 1] and `fill` in the hole, channel 3 is 1 in
    the hole and 0 elsewhere. The hole is the example's "mask", if there is one, [H, W]
    or [H, W, 1], true or >= 0.5 where the picture is to be filled; else it is drawn.
    """

    needs = ("image",)

    def __init__(self, style="mixed", min_share=0.05, max_share=0.6, fill=-1.0):
        """Keeps how to draw holes.

        Args:
          style: Row of masks.STYLES.
          min_share: Least share of the picture that the hole takes.
          max_share: Largest share, at least 0.1 more.
          fill: Value in the hole: -1 in the original, 0 in Stable Diffusion.
        """
        choose(STYLES, style, "style")
        _require(
            0 <= min_share <= max_share <= 1 and max_share - min_share > 0.099,
            "the shares must be in [0, 1] and max_share >= min_share + 0.1, got "
            f"{min_share} and {max_share}",
        )
        self._style, self._shares, self._fill = style, (min_share, max_share), fill

    def __call__(self, example, rng):
        image, mask = example["image"], example.get("mask")
        if mask is None:
            mask = draw_mask(*image.shape[:2], rng, self._style, *self._shares)
        mask = np.asarray(mask)
        _require(
            mask.shape in (image.shape[:2], (*image.shape[:2], 1)),
            f"the mask is {mask.shape}, the picture {image.shape}: give both one size",
        )
        mask = mask.reshape(*image.shape[:2], 1) >= 0.5
        masked = np.where(mask, np.float32(self._fill), _to_float(image))
        return np.concatenate([masked, mask], axis=-1, dtype=np.float32)


class Image(Input):
    """A picture that guides, such as a style: uint8 [H, W, 3].

    It is what the example has under the input's own key, uint8 or an encoded file, cut
    at the centre and resized; else the example's picture. It is another picture, so it
    follows neither crop nor mirroring of that one.
    """

    def __init__(self, key, size=None):
        """Keeps where to look.

        Args:
          key: Key of the input.
          size: Side of the result in pixels; None is the height and width of the
            example's picture, or of the guiding one if there is no other.
        """
        self._key, self._size = key, size

    def __call__(self, example, rng):
        image, guide = example.get("image"), example.get(self._key)
        if guide is None:
            _require(image is not None, f'the example has no "{self._key}" nor "image"')
            guide = image
        guide = np.asarray(decode(guide))
        height, width = (guide if image is None else image).shape[:2]
        return _resize(guide, self._size or height, self._size or width)


class Feature(Input):
    """Any array that the source holds, such as an embedding, as float32."""

    def __init__(self, key, feature=None):
        """Keeps where to look.

        Args:
          key: Key of the input.
          feature: The source's name for it; None is the key of the input.
        """
        self._key = key
        self.needs = (feature or key,)

    def __call__(self, example, rng):
        value = example.get(self._key)
        return np.asarray(example[self.needs[0]] if value is None else value, "f4")


def _require(condition, message):
    if not condition:
        raise ValueError(message)


def _to_float(image):
    return image.astype(np.float32) / np.float32(127.5) - 1


def _resize(image, height, width):
    """Cuts a picture at the centre to the shape asked for and resizes it."""
    if image.shape[:2] == (height, width):
        return image
    image, size = PilImage.fromarray(image), (height, width)
    return resize_image(image, choose_crop(*image.size, size), size)


# What is made of an example, by the name that configs use.
INPUTS = {
    "caption": Caption,
    "layout": Layout,
    "segmentation": Segmentation,
    "depth": Depth,
    "low_res": LowRes,
    "masked_image": MaskedImage,
    "image": Image,
    "feature": Feature,
}
