"""Makes the example of each sample, and from it the conditions of the model.

Values of flags and held-out data become examples as in training, so that the same
inputs can be made from them.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ldm_jax.annotations import Bool, Int, Shaped
from ldm_jax.console import warn_once
from ldm_jax.data.crops import SIZE_AND_CROP, WHOLE, Size, choose_crop, whole_size
from ldm_jax.data.inputs import apply_inputs, inputs_of
from ldm_jax.data.modalities import MODALITIES, keys_of, notes_of, pack, unpack
from ldm_jax.data.transforms import cut_image, extent, transform
from ldm_jax.errors import ConfigError, DecodeError
from ldm_jax.images import (
    RGB,
    Pixels,
    decode_pixels,
    find_size,
    memory_limit,
    require_memory,
)
from ldm_jax.reading import open_file, parts_of
from ldm_jax.sampling.flag_values import dashed
from ldm_jax.sampling.gradient_guidance import GUIDE_FACTOR
from ldm_jax.sampling.task import Task, ways
from ldm_jax.store import raise_if_silent
from ldm_jax.trained import Trained


def make_example(trained: Trained, task: Task, k: int) -> dict[str, Any]:
    """Makes the example of sample k.

    Args:
      trained: A Trained.
      task: A Task.
      k: Number of the sample.

    Returns:
      Dict like that of `transforms.transform`, but of the requested size, and with the
      first of several captions.

    Raises:
      ConfigError: If a file or a held-out example cannot be read.
    """
    with memory_limit(trained.config.data.get("max_image_gb")):
        return _make_example(trained, task, k)


def _make_example(trained, task, k):
    example = {}
    if task.source is not None:
        index = k % len(task.source)
        try:
            found = task.source[index]
            for note in notes_of(found):
                warn_once(f"{task.source.describe(index)}: {note}")
            example = transform(found, task.size, pixels=trained.pixels)
            if not isinstance(example.get("caption", ""), str):
                example["caption"] = example["caption"][0]
        # Damaged records and files raise all kinds of errors.
        except Exception as error:
            where = task.source.describe(index)
            raise_if_silent(where, error)
            raise ConfigError(f"--from_data: cannot read {where}: {error}") from error
    for name, values in task.values.items():
        if name in MODALITIES:  # The others are not part of an example.
            example |= _place(trained, task, name, values[k])
    if {"image", "mask"} <= task.values.keys():
        _check_proportions(task.values["image"][k], task.values["mask"][k])
    return example


def _place(trained, task, name, value):
    """The part of an example for a flag's value, as all inputs that use it need it."""
    side = trained.config.data.image_size
    takers = inputs_of(trained.inputs, name).values()
    if not takers:
        return unpack(name, fit(name, value, task.size, trained.pixels))
    part = {}
    for make in takers:
        size = make.size_for(name, task.size, side)
        fitted = fit(name, value, size, trained.pixels)
        try:
            part = make.place(name, fitted) | part
        except ValueError as error:
            raise ConfigError(f"{dashed(name)}: {error}") from error
    return part


def fit(name: str, value: Any, size: Size, pixels: Pixels = RGB) -> Any:
    """Fits a flag's value to the size of the samples.

    Args:
      name: Row of MODALITIES.
      value: Path of a file, or another value, depending on the flag's form.
      size: (height, width) in pixels.
      pixels: Format of the model's images.

    Returns:
      The value for the example: images and maps are centre-cropped and resized.

    Raises:
      ConfigError: If a file cannot be read, or is not usable.
    """
    row = MODALITIES[name]
    try:
        if name == "image":
            return _fit_image(value, size, pixels)
        # One file often serves all samples.
        make = _fit if row.decode is None else _fit_file
        return make(row, value, size)
    except (DecodeError, OSError) as error:
        raise_if_silent(value, error)
        raise ConfigError(f"{dashed(name)}: cannot read {value}: {error}") from error
    except ValueError as error:
        where = f"{value} " if row.decode is not None else ""
        raise ConfigError(f"{dashed(name)}: {where}{error}") from error


def _fit(row, value, size):
    change = row.fit or row.follow
    return value if change is None else change(value, WHOLE, size)


@functools.lru_cache(maxsize=64)
def _fit_file(row, path, size):
    opened = row.decode(path, max(size))
    crop = choose_crop(*extent(opened), size)
    return (row.fit or row.follow)(opened, crop, size)


@functools.lru_cache(maxsize=64)
def _fit_image(path, size, pixels):
    opened = decode_pixels(path, max(size), pixels)
    return cut_image(opened, choose_crop(*extent(opened), size), size, pixels)


@functools.lru_cache(maxsize=64)
def _extent_of_file(name, path):
    try:
        with open_file(path, require_memory) as file:
            return find_size(*parts_of(file))
    except (DecodeError, OSError) as error:
        raise_if_silent(path, error)
        raise ConfigError(f"{dashed(name)}: cannot read {path}: {error}") from error


def _check_proportions(image, mask):
    """Checks that both have the same proportions, as both are centre-cropped."""
    width, height = _extent_of_file("image", image)
    found = _extent_of_file("mask", mask)
    if abs(width * found[1] - height * found[0]) > max(width, height, *found):
        raise ConfigError(
            f"--mask: {mask} is {found[0]} x {found[1]} pixels and {image} "
            f"{width} x {height}: give both the same proportions"
        )


def make_row(
    trained: Trained,
    task: Task,
    seed: int,
    k: int,
    example: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Makes the row of a batch for sample k.

    Args:
      trained: A Trained.
      task: A Task.
      seed: Seed of the run, which also seeds the randomness of the inputs.
      k: Number of the sample.
      example: Result of `make_example`, if there is one already.

    Returns:
      Dict of "inputs", the conditioner's keys -> array, and if the task needs them
      "negative" likewise, "images" [H, W, C] like those of a batch (also those of
      held-out data), "mask" bool [H, W, 1], true where the image is to be filled,
      "classes" and "guide"; see `gradient_guidance.make_gradient_guidance`.

    Raises:
      ConfigError: If a file or a held-out example cannot be read or does not fit.
    """
    if example is None:
        example = make_example(trained, task, k)
    with memory_limit(trained.config.data.get("max_image_gb")):
        return _make_row(trained, task, seed, k, example)


def _make_row(trained, task, seed, k, example):
    key = np.array([seed, k], np.uint64)
    rng = np.random.Generator(np.random.Philox(key=key))
    try:
        example = {SIZE_AND_CROP: whole_size(task.size)} | example
        made = apply_inputs(trained.inputs, example, rng)
    except ValueError as error:
        where = _origin(trained, task, k)
        raise ConfigError(f"sample {k}{where}: {error}") from error
    row = {"inputs": {key: made[key] for key in trained.model.conditioner.entries}}
    _check_inputs(trained, task, k, row["inputs"])
    if "negative_prompt" in task.values:
        negative = {"caption": task.values["negative_prompt"][k]}
        texts = inputs_of(trained.inputs, "caption")
        row["negative"] = {key: make(negative, rng) for key, make in texts.items()}
        _check_inputs(trained, task, k, row["inputs"] | row["negative"])
    mask = find_mask(trained, example, made)
    if mask is not None:
        row["mask"] = mask
    if task.starts or mask is not None or task.source is not None:
        row["images"] = example["image"]
    if "classifier" in task.scales:
        row["classes"] = example["label"]
    if "guide" in task.scales:
        row["guide"] = _guide(trained, task, k)
    return row


def _guide(trained, task, k):
    """The guide image, at the resolution at which samples are compared with it."""
    factor = 1 if trained.lpips is not None else GUIDE_FACTOR
    path, size = task.values["guide_image"][k], tuple(n // factor for n in task.size)
    try:
        return _fit_image(path, size, trained.pixels)
    except (DecodeError, OSError) as error:
        raise_if_silent(path, error)
        raise ConfigError(f"--guide_image: cannot read {path}: {error}") from error


def find_mask(
    trained: Trained, example: Mapping[str, Any], made: Mapping[str, Any]
) -> Bool[np.ndarray, "H W 1"] | None:
    """Finds where the image of a sample is to be filled.

    Args:
      trained: A Trained.
      example: Result of `make_example`.
      made: Batch key -> value that the input of that key made from the example.

    Returns:
      bool [H, W, 1], true where it is to be filled; None if nowhere.
    """
    if "mask" in example:
        return np.asarray(example["mask"], bool)[..., None]
    masks = (make.mask_of(made[key]) for key, make in trained.inputs.items())
    return next((mask for mask in masks if mask is not None), None)


def make_batch(
    trained: Trained,
    task: Task,
    seed: int,
    indices: Sequence[int] | Int[np.ndarray, " batch"],
) -> dict[str, Any]:
    """Makes the batch of some samples.

    Args:
      trained: A Trained.
      task: A Task.
      seed: Seed of the run.
      indices: Numbers of the samples, B of them.

    Returns:
      Dict of the rows of `make_row`, stacked, and "index" int32 [B], the samples whose
      noise is used. On a path also "fraction" float32 [B], the position on the path,
      and "ends", the same dict for its two ends, alternating, for each sample.

    Raises:
      ConfigError: If a file or a held-out example cannot be read, or a condition is not
        valid for the model.
    """
    if not task.path:
        return _stack(trained, task, seed, indices)
    first, last, count = task.path
    # All noise but the initial is that of one end, so that images change continuously.
    batch = _stack(trained, task, seed, [first] * len(indices))
    batch["ends"] = _stack(trained, task, seed, [first, last] * len(indices))
    batch["fraction"] = np.asarray(indices, np.float32) / (count - 1)
    return batch


def _stack(trained, task, seed, indices):
    made = {int(k): make_row(trained, task, seed, int(k)) for k in set(indices)}
    rows = [made[int(k)] for k in indices]
    batch = jax.tree.map(lambda *arrays: np.stack(arrays), *rows)
    return batch | {"index": np.asarray(indices, np.int32)}


def _check_inputs(trained, task, k, inputs):
    """Checks the conditions of a sample as those of a training example."""
    try:
        trained.model.conditioner.check(
            {key: np.asarray(value)[None] for key, value in inputs.items()}
        )
        for key, value in inputs.items():
            _check_width(key, np.asarray(value), trained.shapes.get(key))
    except ValueError as error:
        where = _origin(trained, task, k)
        raise ConfigError(f"sample {k}{where}: {error}") from error


def _check_width(key, value, trained_on):
    """Checks that floats have as many channels as those of training."""
    if trained_on is None or value.dtype.kind != "f" or not value.ndim:
        return
    axes = trained_on[1]
    if len(axes) == value.ndim and axes[-1] != value.shape[-1]:
        raise ValueError(
            f"condition {key!r}: the last axis is {value.shape[-1]}, and the model was "
            f"trained with {axes[-1]}"
        )


def _origin(trained, task, k):
    """The files, and the example, that the conditions of a sample come from."""
    taken = {
        name
        for key in trained.model.conditioner.entries
        for way in ways(trained, key)
        for name in way
        if name in task.values and MODALITIES[name].decode is not None
    }
    found = [str(task.values[name][k]) for name in sorted(taken)]
    if task.source is not None:
        found.append(task.source.describe(k % len(task.source)))
    return f" ({', '.join(found)})" if found else ""


def warn_of_crops(trained: Trained, task: Task) -> None:
    """Prints a line if the first low-resolution image is cropped or resized.

    Args:
      trained: A Trained.
      task: A Task.
    """
    if "low_res" not in task.values:
        return
    path, side = task.values["low_res"][0], trained.config.data.image_size
    width, height = _extent_of_file("low_res", path)
    make = next(iter(inputs_of(trained.inputs, "low_res").values()))
    rows, columns = make.size_for("low_res", task.size, side)
    factor = task.size[0] // rows
    if (height, width) != (rows, columns):
        print(
            f"{path} is cut and resized from {height} x {width} to {rows} x {columns} "
            f"pixels; --height={factor * height} --width={factor * width} takes it as "
            "it is"
        )


def conditions_from(task: Task, k: int) -> int:
    """Returns which sample's conditions are used; on a path, those of its start.

    Args:
      task: A Task.
      k: Number of the sample.

    Returns:
      Number of the sample whose conditions are used.
    """
    return task.path[0] if task.path else k


def collect_conditions(
    trained: Trained, task: Task, seed: int
) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Collects the conditions of all samples, for evaluators.

    Args:
      trained: A Trained.
      task: A Task.
      seed: Seed of the run.

    Returns:
      Dict of arrays [N, ...]: "arr_1", the labels of a class-conditional model;
      "caption" strings, "label", "segmentation", "depth", "boxes", "box_labels" and so
      on as in an example; "mask" bool [N, H, W, 1], true where the image was filled;
      and "input_KEY" for every other input, by its batch key.
    """
    rows = []
    for k in range(task.count):
        k = conditions_from(task, k)
        example = make_example(trained, task, k)
        row = make_row(trained, task, seed, k, example)
        kept = _kept(example)
        if "mask" in row:
            kept["mask"] = row["mask"]
        for key, value in row["inputs"].items():
            make = trained.inputs.get(key)
            if key == "label":
                kept["arr_1"] = value
            elif make is None or make.mask_of(value) is None:
                kept[f"input_{key}"] = value
        rows.append(kept)
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


def _kept(example):
    """The part of an example that is written for evaluators."""
    kept = {}
    for name, row in MODALITIES.items():
        if row.kept and pack(name, example) is not None:
            kept |= {key: example[key] for key in keys_of(name) if key in example}
    return kept
