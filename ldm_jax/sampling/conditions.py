"""The example of each sample, and what the model is told of it.

What flags give and what held-out data give becomes an example as training sees them, of
which the very same inputs are made.
"""

import functools

import jax
import numpy as np

from ldm_jax.data import inputs
from ldm_jax.data.inputs import apply_inputs
from ldm_jax.data.transforms import (
    Crop,
    choose_crop,
    pad_boxes,
    resize_depth,
    resize_image,
    resize_labels,
    resize_mask,
    transform,
)
from ldm_jax.errors import ConfigError, DecodeError
from ldm_jax.images import decode, decode_plane
from ldm_jax.sampling.gradient_guidance import GUIDE_FACTOR

_WHOLE = Crop(0.0, 0.0, 1.0, 1.0, False)

# Keys of an example that evaluators are told.
_KEPT = ("caption", "label", "segmentation", "depth", "boxes", "box_labels")


def make_example(trained, request, k):
    """Makes the example of sample k.

    Args:
      trained: A Trained.
      request: A Request.
      k: Number of the sample.

    Returns:
      Dict like that of `transforms.transform`, but of the size asked for, and with the
      first of several captions.

    Raises:
      ConfigError: If a file or a held-out example cannot be read.
    """
    example = {}
    if request.source is not None:
        index = k % len(request.source)
        try:
            example = transform(request.source[index], request.size)
            if not isinstance(example.get("caption", ""), str):
                example["caption"] = example["caption"][0]
        # Whatever a damaged record or file raises.
        except Exception as error:
            where = request.source.describe(index)
            raise ConfigError(f"--from_data: cannot read {where}: {error}") from error
    for flag, column in request.columns.items():
        if flag in _FIT:  # The others are no part of it.
            example |= _FIT[flag](trained, flag, column[k], request.size)
    if {"image", "mask"} <= request.columns.keys():
        _check_mask(request.columns["image"][k], request.columns["mask"][k])
    return example


def make_row(trained, request, seed, k, example=None):
    """Makes what the program takes for sample k.

    Args:
      trained: A Trained.
      request: A Request.
      seed: Seed of the run, of which what is random in the inputs follows.
      k: Number of the sample.
      example: That of `make_example`, if it is there already.

    Returns:
      Dict of "inputs", the conditioner's keys -> array, and as the request needs them
      "negative" likewise, "images" uint8 [H, W, 3] (also those of held-out data),
      "hole" bool [H, W, 1], "classes" and "guide"; see `steer.make_steer`.

    Raises:
      ConfigError: If a file or a held-out example cannot be read or does not fit.
    """
    if example is None:
        example = make_example(trained, request, k)
    rng = np.random.Generator(np.random.Philox(key=[seed % 2**63, k]))
    try:
        told = apply_inputs(trained.inputs, example, rng)
    except ValueError as error:
        raise ConfigError(f"sample {k}: {error}") from error
    row = {"inputs": {key: told[key] for key in trained.model.conditioner.entries}}
    if "negative_prompt" in request.columns:
        negative = {"caption": request.columns["negative_prompt"][k]}
        made = _inputs_of(trained, inputs.Caption)
        row["negative"] = {key: make(negative, rng) for key, make in made.items()}
    hole = find_hole(trained, example, told)
    if hole is not None:
        row["hole"] = hole
    if request.starts or hole is not None or request.source is not None:
        row["images"] = example["image"]
    if "classifier" in request.scales:
        row["classes"] = example["label"]
    if "guide" in request.scales:
        factor = 1 if trained.lpips is not None else GUIDE_FACTOR
        size = tuple(side // factor for side in request.size)
        guide = request.columns["guide_image"][k]
        row["guide"] = _picture("guide_image", guide, size)
    return row


def make_batch(trained, request, seed, indices):
    """Makes the batch of some samples.

    Args:
      trained: A Trained.
      request: A Request.
      seed: Seed of the run.
      indices: Numbers of the samples, B of them.

    Returns:
      Dict of the rows of `make_row`, stacked, and "index" int32 [B], the samples whose
      noise is used. On a path there are "share" float32 [B], how far along it is, and
      "ends", the same dict for its two ends, in turn for each sample.

    Raises:
      ConfigError: If something cannot be read or is not what the model takes.
    """
    if not request.path:
        return _stack(trained, request, seed, indices)
    first, last, count = request.path
    # All but the first noise is that of one end, so that nothing jumps on the way.
    batch = _stack(trained, request, seed, [first] * len(indices))
    batch["ends"] = _stack(trained, request, seed, [first, last] * len(indices))
    batch["share"] = np.asarray(indices, np.float32) / (count - 1)
    return batch


def warn_of_cuts(trained, request):
    """Says so if the first small picture loses pixels: they are hard to come by."""
    if "low_res" not in request.columns:
        return
    path = request.columns["low_res"][0]
    width, height = _open("low_res", path).size
    factor = next(iter(_inputs_of(trained, inputs.LowRes).values())).factor
    rows, columns = (side // factor for side in request.size)
    if (height, width) != (rows, columns):
        print(
            f"{path} is cut and resized from {height} x {width} to {rows} x {columns} "
            f"pixels; --height={factor * height} --width={factor * width} takes it as "
            "it is"
        )


def told_as(request, k):
    """The number of the sample that sample k shares its conditions with."""
    return request.path[0] if request.path else k


def _stack(trained, request, seed, indices):
    made = {int(k): make_row(trained, request, seed, int(k)) for k in set(indices)}
    rows = [made[int(k)] for k in indices]
    batch = jax.tree.map(lambda *arrays: np.stack(arrays), *rows)
    for part in ("inputs", "negative"):
        if part in batch:
            _check_inputs(trained, batch["inputs"] | batch[part])
    return batch | {"index": np.asarray(indices, np.int32)}


def _check_inputs(trained, batch):
    try:
        trained.model.conditioner.check(batch)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def collect_conditions(trained, request, seed):
    """What the samples were told, for evaluators.

    Args:
      trained: A Trained.
      request: A Request.
      seed: Seed of the run.

    Returns:
      Dict of arrays [N, ...]: "arr_1", the labels of a class-conditional model;
      "reference" uint8, the pictures that are given or held out; "caption" strings,
      "label", "segmentation", "depth", "boxes", "box_labels" as in an example;
      "hole" bool [N, H, W, 1], true where the picture was filled; and "input_KEY" for
      every other input under its batch key.
    """
    rows = []
    for k in range(request.count):
        k = told_as(request, k)
        example = make_example(trained, request, k)
        row = make_row(trained, request, seed, k, example)
        kept = {key: example[key] for key in _KEPT if key in example}
        if "image" in example:
            kept["reference"] = example["image"]
        if "hole" in row:
            kept["hole"] = row["hole"]
        for key, value in row["inputs"].items():
            if key == "label":
                kept["arr_1"] = value
            elif not isinstance(trained.inputs.get(key), inputs.MaskedImage):
                kept[f"input_{key}"] = value
        rows.append(kept)
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


def find_hole(trained, example, told):
    """Where the picture is to be filled, bool [H, W, 1]; None if nowhere."""
    if "mask" in example:
        return np.asarray(example["mask"], bool)[..., None]
    for key in _inputs_of(trained, inputs.MaskedImage):
        return told[key][..., 3:] >= 0.5
    return None


def _fit_text(trained, flag, value, size):
    return {"caption": value}


def _fit_label(trained, flag, value, size):
    return {"label": np.int32(value)}


def _fit_layout(trained, flag, value, size):
    boxes, labels = value
    for make in _inputs_of(trained, inputs.Layout).values():
        if len(labels) > make.max_objects:
            raise ConfigError(
                f"--{flag}: a layout has {len(labels)} objects; this model is told up "
                f"to {make.max_objects}"
            )
    boxes, labels = pad_boxes(boxes, labels)
    return {"boxes": boxes, "box_labels": labels}


def _fit_features(trained, flag, value, size):
    made = _inputs_of(trained, inputs.Feature)
    return {need: value for make in made.values() for need in make.needs}


def _fit_picture(trained, flag, value, size):
    return {flag: _picture(flag, value, size)}


def _fit_low_res(trained, flag, value, size):
    made = _inputs_of(trained, inputs.LowRes)
    factor = next(iter(made.values())).factor
    return {flag: _picture(flag, value, tuple(side // factor for side in size))}


def _fit_style(trained, flag, value, size):
    side = trained.config.data.image_size
    picture = _picture(flag, value, (side, side))
    return dict.fromkeys(_inputs_of(trained, inputs.Image), picture)


def _fit_map(trained, flag, value, size):
    return {flag: _map(flag, value, size)}


def _fit_mask(trained, flag, value, size):
    return {flag: _mask(flag, value, size)}


def _inputs_of(trained, kind):
    return {key: x for key, x in trained.inputs.items() if isinstance(x, kind)}


# Cached, as one file often serves all samples.
@functools.lru_cache(maxsize=64)
def _picture(flag, path, size):
    """A picture, cut at the centre and resized, uint8 [H, W, 3]."""
    image = _open(flag, path, max(size))
    return resize_image(image, choose_crop(*image.size, size), size)


@functools.lru_cache(maxsize=64)
def _map(flag, path, size):
    """A map of one channel, cut and resized likewise."""
    resize = {"segmentation": resize_labels, "depth": resize_depth}[flag]
    try:
        plane = decode_plane(path)
    except DecodeError as error:
        raise ConfigError(f"--{flag}: cannot read {path}: {error}") from error
    return resize(plane, choose_crop(*plane.shape[::-1], size), size)


@functools.lru_cache(maxsize=64)
def _mask(flag, path, size):
    """A mask, bool [H, W]; pictures of any mode will do."""
    plane = np.asarray(_open(flag, path).convert("L"))
    mask = resize_mask(plane, choose_crop(*plane.shape[::-1], size), size)
    if not mask.any():
        raise ConfigError(
            f"--{flag}: {path} leaves nothing to fill: it must be white there and "
            "black elsewhere"
        )
    return mask


@functools.lru_cache(maxsize=64)
def _check_mask(image, mask):
    """Both are cut at the centre, so they must have the same proportions."""
    (width, height), found = (_open("image", image).size, _open("mask", mask).size)
    if abs(width * found[1] - height * found[0]) > max(width, height, *found):
        raise ConfigError(
            f"--mask: {mask} is {found[0]} x {found[1]} pixels and {image} "
            f"{width} x {height}: give both the same proportions"
        )


def _open(flag, path, least_side=None):
    try:
        return decode(path, least_side)
    except (DecodeError, OSError) as error:
        raise ConfigError(f"--{flag}: cannot read {path}: {error}") from error


# What a flag tells of the example, as keys of it. The other flags tell nothing of it.
_FIT = {
    "labels": _fit_label,
    "prompt": _fit_text,
    "layout": _fit_layout,
    "segmentation": _fit_map,
    "depth": _fit_map,
    "low_res": _fit_low_res,
    "style": _fit_style,
    "image": _fit_picture,
    "mask": _fit_mask,
    "features": _fit_features,
}
