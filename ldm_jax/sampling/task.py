"""What is asked of a model: which flags tell its conditions, and which task it is."""

from typing import NamedTuple

from ldm_jax.data import inputs
from ldm_jax.data.loader import open_source
from ldm_jax.errors import ConfigError
from ldm_jax.sampling.flag_values import Column, read_columns
from ldm_jax.sampling.gradient_guidance import steering_scales


class Request(NamedTuple):
    """What the samples shall be.

    Attributes:
      count: Number of samples.
      columns: Flag -> Column, for the flags that are given.
      source: Held-out data that gives what the flags do not, or None.
      size: (height, width) of the pictures in pixels.
      holds: Whether known pixels are held during sampling, as no condition tells them.
      starts: Whether sampling starts from images or their noise.
      invert: Whether it starts from the noise that the images come from.
      path: (first, last, count): samples lie on the way from the noise of sample
        `first` to that of `last`, and are told what `first` is; None for each its own.
      scales: What steers -> its scale; see `steer.steering_scales`.
      record: What of it belongs into `settings.json`.
    """

    count: int
    columns: dict
    source: object
    size: tuple
    holds: bool
    starts: bool
    invert: bool
    path: tuple | None
    scales: dict
    record: dict


def make_request(
    trained,
    given,
    *,
    num_samples=None,
    size=(None, None),
    from_data=False,
    strength=None,
    invert=False,
    interpolate=None,
    classifier_scale=None,
    guide_scale=None,
):
    """Checks what is given against what the model takes, before anything runs.

    Args:
      trained: A Trained.
      given: Flag -> list of strings; see `columns.FLAGS`.
      num_samples, size, from_data, strength, invert, interpolate, classifier_scale,
        guide_scale: See `run`.

    Returns:
      A Request.

    Raises:
      ConfigError: If flags are missing, superfluous or wrong.
    """
    columns = read_columns(given, class_names(trained), box_names(trained))
    if "prompts_file" in columns:
        lines = columns.pop("prompts_file")
        columns["prompt"] = _joined(columns.get("prompt"), lines)
    source = _open(trained.config.data) if from_data else None
    have = {*columns, *(("image",) if source else ())}
    used = _used_by_conditions(trained, have, source is not None)
    used |= _used_by_tasks(have, strength, invert)
    _refuse_superfluous(trained, columns, used)
    columns = _fill_labels(trained, columns, source)
    told_mask = any(isinstance(x, inputs.MaskedImage) for x in trained.inputs.values())
    size = _check_size(trained, size)
    scales = steering_scales(trained, columns, size, classifier_scale, guide_scale)
    record = {flag: column.record for flag, column in sorted(columns.items())}
    if source:
        section = trained.config.data
        record["from_data"] = f"{section.eval_split} of {section.name}"
    record |= {"size": list(size)}
    record |= {"steering": scales} if scales else {}
    record |= {"invert": True} if invert else {}
    count = num_samples or max([16, *(len(c.values) for c in columns.values())])
    path = None
    if interpolate is not None:
        if count < 2:
            raise ConfigError("--interpolate needs both ends: --num_samples=2 or more")
        path = (*interpolate, count)
        record["interpolate"] = list(path)
    return Request(
        count=count,
        columns=columns,
        source=source,
        size=size,
        holds="mask" in columns and not told_mask,
        starts=strength is not None or invert,
        invert=invert,
        path=path,
        scales=scales,
        record=record,
    )


def _joined(first, second):
    if first is None:
        return second
    return Column(first.values + second.values, first.record + second.record)


def _open(section):
    if not section.get("name"):
        raise ConfigError(
            "--from_data: the workdir names no data, as converted ones do; tell the "
            "conditions by flags"
        )
    if not section.eval_split:
        raise ConfigError("--from_data: the run holds no data out (data.eval_split)")
    source = open_source(section, section.eval_split)
    if not len(source):
        raise ConfigError(f"--from_data: data.eval_split={section.eval_split} is empty")
    return source


def ways(trained, key):
    """Ways to tell a condition: tuples of flags, the usual one first."""
    if key in trained.inputs:
        return _WAYS[type(trained.inputs[key])]
    return (("labels",),) if key == "label" else ()


def _used_by_conditions(trained, have, from_data):
    """Flags that tell the conditions; an error names those that are missing."""
    used = set()
    for key in sorted(trained.model.conditioner.entries):
        choices = ways(trained, key)
        if not choices:
            raise ConfigError(
                f"this model is told {key}, but its config does not say how that is "
                f"made: give data.inputs.{key} a kind, or use ldm_jax.generate"
            )
        way = next((way for way in choices if have.issuperset(way)), None)
        if way is None and not from_data and choices != (("labels",),):
            raise ConfigError(_missing(key, choices, have))
        used |= set(way or ())
    return used


def _missing(key, choices, have):
    for way in choices:
        lacking = [flag for flag in way if flag not in have]
        if len(lacking) < len(way):
            given = " and ".join(_dashed(flag) for flag in way if flag in have)
            needed = " and ".join(map(_dashed, lacking))
            return f"{given} needs {needed} for this model, which is told {key}"
    needed = " or ".join(" and ".join(map(_dashed, way)) for way in choices)
    return f"this model is told {key}: give {needed}, or --from_data"


def _used_by_tasks(have, strength, invert):
    """Flags that start or hold an image; an error names those that are missing."""
    tasks = {
        f"--strength={strength}": strength is not None,
        "--invert": invert,
        "--mask": "mask" in have,
    }
    asked = [name for name, given in tasks.items() if given]
    if asked and "image" not in have:
        raise ConfigError(f"{asked[0]} needs an image to work on: give --image")
    if invert and strength is not None:
        raise ConfigError(
            "--invert finds the noise of the whole way and --strength goes a part of "
            "it: leave one out"
        )
    return {"image", "mask"} if asked else set()


def _refuse_superfluous(trained, columns, used):
    prompted = "prompt" in used or any(
        isinstance(x, inputs.Caption) for x in trained.inputs.values()
    )
    used = used | {"guide_image"} | ({"negative_prompt"} if prompted else set())
    used |= {"labels"} if trained.classifier else set()
    for flag in sorted(columns.keys() - used):
        if flag == "image":
            raise ConfigError(
                "--image tells this model nothing beyond the other flags: add "
                "--strength (image to image), --mask (inpainting) or --invert, or "
                "leave it out"
            )
        takes = {
            " and ".join(map(_dashed, way))
            for key in trained.model.conditioner.entries
            for way in ways(trained, key)
        }
        raise ConfigError(
            f"{_dashed(flag)} tells this model nothing; its conditions take "
            + (", ".join(sorted(takes)) or "no flag, it was trained without")
        )


def class_names(trained):
    """Names of the classes, an empty list where they have none."""
    of_classifier = trained.classifier.class_names if trained.classifier else []
    return trained.class_names or of_classifier


def box_names(trained):
    """Names of the classes of boxes: in a data set those of its pictures, too."""
    section = trained.config.data
    if section.get("box_names") or section.get("source") == "folder":
        return section.get("box_names") or []
    return trained.class_names


def num_classes(trained):
    """Number of the classes that samples are told or steered to; None without."""
    if trained.classifier is not None:
        return trained.classifier.module.out_channels
    entry = trained.model.conditioner.entries.get("label")
    return None if entry is None else entry.get("num_classes")


def _fill_labels(trained, columns, source):
    """All classes in turn where the user chooses none; checks their range."""
    count = num_classes(trained)
    if count is None:
        return columns
    if "labels" not in columns:
        if source and source.num_classes:
            return columns
        return columns | {"labels": Column(tuple(range(count)), list(range(count)))}
    wrong = [label for label in columns["labels"].values if label >= count]
    if wrong:
        raise ConfigError(
            f"--labels: there is no class '{wrong[0]}'; choose from 0 to {count - 1}"
        )
    return columns


def _check_size(trained, size):
    """Height and width, which first stage and U-Net must be able to halve."""
    model = trained.model
    unit = model.first_stage.downsampling_factor * model.backbone.size_multiple
    sides = []
    for name, side in zip(("height", "width"), size, strict=True):
        side = trained.config.data.image_size if side is None else side
        if side < 1 or side % unit:
            nearest = max(unit, round(side / unit) * unit)
            raise ConfigError(
                f"--{name}={side} is no multiple of {unit}, which the first stage and "
                f"the U-Net divide by: use --{name}={nearest}"
            )
        sides.append(side)
    return tuple(sides)


def _dashed(flag):
    return f"--{flag}" + (" (or --prompts_file)" if flag == "prompt" else "")


# How each kind of input is told: one of these tuples of flags.
_WAYS = {
    inputs.Caption: (("prompt",),),
    inputs.Layout: (("layout",),),
    inputs.Segmentation: (("segmentation",),),
    inputs.Depth: (("depth",),),
    inputs.LowRes: (("low_res",), ("image",)),
    inputs.MaskedImage: (("image", "mask"),),
    inputs.Image: (("style",), ("image",)),
    inputs.Feature: (("features",),),
}
