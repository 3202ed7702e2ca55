"""Side information of images: one row of MODALITIES per kind.

A row defines everything about its kind: the file beside an image that holds it, its
names in prepared data sets, its flags of `sample.py`, how it is decoded, cropped and
resized with the image, and how it is drawn. Folders, prepared data sets, transforms,
sampling, previews and contact sheets read the table, so a new kind only needs a row.
The config section `data.inputs` (`inputs/`) then makes a model's condition from it; for
a map of any kind by

    inputs=dict(normals=dict(kind="map"))

A kind of side information is usually one value of an example, under the name of its
row. A row with several `keys` has one value per key, which belong together; packed as
one value they are a tuple in the order of the keys.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ldm_jax.data import draw
from ldm_jax.data.crops import (
    MAX_BOXES,
    Crop,
    Size,
    crop_boxes,
    crop_image,
    pad_boxes,
    resize_floats,
    resize_image,
    resize_labels,
    resize_mask,
)
from ldm_jax.data.layout import check_boxes, parse_layout, without_area
from ldm_jax.images import decode, decode_grey
from ldm_jax.images.map_decoding import decode_depth, decode_labels
from ldm_jax.reading import parse_json, split_lines


class Flag(NamedTuple):
    """A flag of `sample.py` that gives a kind of side information.

    Attributes:
      name: Name of the flag.
      help: Its text in `--help`.
      form: How values are read, a row of `sampling.flag_values.FORMS`: "images" and
        "arrays" are files or folders of them, "texts" are the values themselves,
        "sizes" and "corners" pairs of numbers.
    """

    name: str
    help: str
    form: str = "images"


def _as_it_is(data: bytes, names: Sequence[str] | None) -> bytes:
    return data


# Compared by identity, so that a row can be a key of a cache.
@dataclasses.dataclass(frozen=True, eq=False)
class Modality:
    """One kind of side information.

    Attributes:
      keys: Keys of an example that hold it; if empty, the name of the row.
      suffix: Suffix of the file beside an image, in place of the image's own, e.g.
        ".depth.png"; None if no file holds it.
      parse: (bytes of that file, names of the classes of boxes) -> value.
      prepared: Key -> its names in prepared data sets, of which the first that exists
        is used; dots lead into nested features. The default is the key itself.
      flags: Flags that set it, the usual one first; the values of all are joined.
      decode: (encoded bytes, path or array; least side in pixels, or None) -> PIL image
        or array [H, W, ...], for `follow` and `fit`; None for non-spatial values.
      follow: (value, Crop, size) -> the value that matches the image's crop; None if it
        is not cropped with the image.
      fit: The same for the value of a flag, with size and crop of a sample; None to use
        `follow`.
      draw: (value, (height, width) in pixels, names of the classes of boxes) -> uint8
        [height, width, 3]; None if it is not drawn.
      note: value -> text on what is left out of it, or None; None if nothing ever is.
      kept: Whether `sample.py --npz` saves it with the samples.
    """

    keys: tuple[str, ...] = ()
    suffix: str | None = None
    parse: Callable[[bytes, Sequence[str] | None], Any] = _as_it_is
    prepared: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    flags: tuple[Flag, ...] = ()
    decode: Callable[..., Any] | None = None
    follow: Callable[[Any, Crop, Size], Any] | None = None
    fit: Callable[[Any, Crop, Size], Any] | None = None
    draw: Callable[[Any, tuple[int, int], Sequence[str]], np.ndarray] | None = None
    note: Callable[[Any], str | None] | None = None
    kept: bool = True


def keys_of(name: str) -> tuple[str, ...]:
    """Lists the keys of an example that hold a modality.

    Args:
      name: Row of MODALITIES.

    Returns:
      The row's `keys`, or its name.
    """
    return MODALITIES[name].keys or (name,)


def modality_of(key: str) -> str | None:
    """Finds the modality that a key of an example belongs to.

    Args:
      key: Key of an example.

    Returns:
      Row of MODALITIES; None if there is none.
    """
    if key in MODALITIES and not MODALITIES[key].keys:
        return key
    return next((name for name, row in MODALITIES.items() if key in row.keys), None)


def pack(name: str, example: Mapping[str, Any]) -> Any:
    """Gets the value of a modality from an example.

    Args:
      name: Row of MODALITIES.
      example: Dict by key.

    Returns:
      The value; for several keys a tuple, with None for missing ones. None if the
      example lacks the first key.
    """
    first, *others = keys_of(name)
    value = example.get(first)
    if value is None or not others:
        return value
    return (value, *(example.get(key) for key in others))


def unpack(name: str, value: Any) -> dict[str, Any]:
    """Converts a value to the keys of an example: the inverse of `pack`.

    Args:
      name: Row of MODALITIES.
      value: Its value; for several keys a tuple.

    Returns:
      Dict of key -> value.
    """
    keys = keys_of(name)
    return dict(zip(keys, value if len(keys) > 1 else (value,), strict=True))


def notes_of(example: Mapping[str, Any]) -> list[str]:
    """Describes what is left out of an example.

    Args:
      example: Dict from a source.

    Returns:
      A sentence for each modality of which something is left out.
    """
    values = {name: pack(name, example) for name, row in MODALITIES.items() if row.note}
    notes = [MODALITIES[n].note(v) for n, v in values.items() if v is not None]
    return [note for note in notes if note]


def as_text(data: Any) -> Any:
    """Decodes bytes if they are text.

    Args:
      data: Anything.

    Returns:
      str for bytes in UTF-8; everything else, such as encoded images, unchanged.
    """
    try:
        return data.decode() if isinstance(data, bytes) else data
    except UnicodeDecodeError:
        return data


def _decode_mask(data: Any, least_side: int | None = None) -> np.ndarray:
    return decode_grey(data)


def _captions(data, names):
    lines = [line for line in split_lines(data) if line] or [""]
    return lines[0] if len(lines) == 1 else lines


def _layout(data, names):
    return parse_layout(parse_json(data), names)


def _follow_label(label, crop, size):
    return np.int32(label)


def _follow_caption(caption, crop, size):
    if isinstance(caption, str | bytes):
        return as_text(caption)
    if not isinstance(caption, list | tuple | np.ndarray) or np.ndim(caption) == 0:
        raise ValueError(f"a caption is {caption!r}, which is no text")
    return [as_text(one) for one in caption]


def _follow_layout(layout, crop, size):
    boxes, labels = check_boxes(layout[0]), layout[1]
    labels = np.zeros(len(boxes), int) if labels is None else np.asarray(labels)
    if labels.size and (labels.dtype.kind not in "iu" or labels.min() < 0):
        raise ValueError(
            f"labels of boxes must be whole numbers from 0 on, got {labels.tolist()}"
        )
    return pad_boxes(crop_boxes(boxes, crop), labels)


def _note_of_layout(layout):
    count = int(without_area(check_boxes(layout[0])).sum())
    return f"{count} of {len(layout[0])} boxes without area left out" if count else None


def _fit_layout(layout, crop, size):
    if len(layout[0]) > MAX_BOXES:
        raise ValueError(
            f"a layout has {len(layout[0])} objects; give at most {MAX_BOXES}"
        )
    return _follow_layout(layout, crop, size)


def _fit_mask(mask, crop, size):
    mask = resize_mask(mask, crop, size)
    if not mask.any():
        raise ValueError(
            "leaves nothing to fill: it must be white there and black elsewhere"
        )
    return mask


# Kinds of side information of an image, by name.
MODALITIES = {
    "image": Modality(
        flags=(
            Flag(
                "image",
                "Images to start from (--strength, --invert), to inpaint (--mask), or "
                "to condition on, if the model takes one.",
            ),
        ),
        decode=decode,
        follow=resize_image,
        draw=draw.draw_image,
        # Saved as "reference".
        kept=False,
    ),
    "label": Modality(
        flags=(
            Flag(
                "labels", "Classes by name or number; all of them by default.", "labels"
            ),
            Flag(
                "labels_file",
                "Text files, one class per line by name or number.",
                "label_lines",
            ),
        ),
        follow=_follow_label,
    ),
    "caption": Modality(
        # One caption per line; of several, one is drawn in each epoch.
        suffix=".txt",
        parse=_captions,
        prepared={"caption": ("caption", "captions.text")},
        flags=(
            Flag("prompt", "A caption; may be repeated.", "texts"),
            Flag(
                "prompts_file",
                "Text files, a caption per line; for a folder of images the first "
                "caption beside each.",
                "lines",
            ),
        ),
        follow=_follow_caption,
    ),
    "layout": Modality(
        keys=("boxes", "box_labels"),
        # `[{"label": 3, "box": [ymin, xmin, ymax, xmax]}]`; see `layout.parse_layout`.
        suffix=".json",
        parse=_layout,
        prepared={
            # OpenImages has "objects" besides, which are labels of the whole image.
            "boxes": ("bobjects.bbox", "objects.bbox"),
            "box_labels": ("bobjects.label", "objects.label"),
        },
        flags=(
            Flag(
                "layout",
                'JSON files of boxes: [{"label": 3, "box": [ymin, xmin, ymax, xmax]}, '
                "...] in [0, 1], a label as number or name; or lists of such lists.",
                "layouts",
            ),
        ),
        follow=_follow_layout,
        fit=_fit_layout,
        note=_note_of_layout,
        draw=draw.draw_layout,
    ),
    "segmentation": Modality(
        # One channel, the class of each pixel.
        suffix=".segmentation.png",
        prepared={
            "segmentation": ("segmentation", "segmentation_mask", "segmentation_label")
        },
        flags=(Flag("segmentation", "Maps of one channel, the class of each pixel."),),
        decode=decode_labels,
        follow=resize_labels,
        draw=draw.draw_labels,
    ),
    "depth": Modality(
        # One channel of 8 or 16 bits, or floats.
        suffix=".depth.png",
        prepared={"depth": ("depth", "depth_map")},
        flags=(Flag("depth", "Maps of one channel, of 8 or 16 bits or floats."),),
        decode=decode_depth,
        follow=resize_floats,
        draw=draw.draw_grey,
    ),
    "mask": Modality(
        # Bright where the image is to be filled.
        suffix=".mask.png",
        flags=(Flag("mask", "Masks, white where --image is to be inpainted."),),
        decode=_decode_mask,
        follow=resize_mask,
        fit=_fit_mask,
        draw=draw.draw_mask,
        # Saved as "mask", if the model or the sampler has filled it.
        kept=False,
    ),
    "low_res": Modality(
        # A small version of the same image, cropped at its own resolution.
        suffix=".low_res.png",
        flags=(Flag("low_res", "Small images to enlarge."),),
        decode=decode,
        follow=crop_image,
        fit=resize_image,
        draw=draw.draw_image,
        kept=False,
    ),
    # Another image, under the key of the input; it is not cropped with the first.
    "style": Modality(
        flags=(Flag("style", "Images whose style is used."),),
        decode=decode,
        fit=resize_image,
        draw=draw.draw_image,
        kept=False,
    ),
    # Size condition (SDXL) of a sample; in training it is that of each image.
    "original_size": Modality(
        flags=(
            Flag(
                "original_size",
                "HEIGHTxWIDTH in pixels of a sample's original image, for models "
                "conditioned on it; the sample's own if unset. May be repeated.",
                "sizes",
            ),
        ),
        kept=False,
    ),
    "crop_corner": Modality(
        flags=(
            Flag(
                "crop",
                "TOP,LEFT in pixels of a sample's crop in its original, for models "
                "conditioned on it; 0,0 if unset. May be repeated.",
                "corners",
            ),
        ),
        kept=False,
    ),
    # Arrays, under the key of the input: embeddings.
    "features": Modality(
        flags=(
            Flag(
                "features",
                "NumPy files [samples, ...] of a condition of another kind.",
                "arrays",
            ),
        ),
        kept=False,
    ),
}
