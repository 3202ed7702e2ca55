"""The task of a run: which flags give the model's conditions, and how it samples."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from absl import logging

from ldm_jax.console import warn_once
from ldm_jax.data.inputs import inputs_of
from ldm_jax.data.open_source import open_source
from ldm_jax.data.sources import require_images
from ldm_jax.diffusion.sample_options import SampleOptions
from ldm_jax.errors import ConfigError
from ldm_jax.sampling.flag_values import (
    FlagValues,
    Names,
    dashed,
    flag_rows,
    read_flags,
)
from ldm_jax.sampling.gradient_guidance import gradient_guidance_scales
from ldm_jax.sampling.options import RunOptions
from ldm_jax.sampling.settings import digest_json
from ldm_jax.trained import Trained

# Maximum number of a flag's values that are recorded one by one.
_MOST_RECORDED = 4096


class Task(NamedTuple):
    """The task of a run.

    Attributes:
      count: Number of samples.
      values: Row of MODALITIES or OTHER_FLAGS -> FlagValues, for the flags that are
        given.
      source: Held-out data for conditions without a flag, or None.
      size: (height, width) of the images in pixels.
      inpaints: Whether the known part of the latents is replaced before every step, for
        a mask that is not a condition of the model.
      starts: Whether sampling starts from images or their noise.
      invert: Whether sampling starts from the inverted noise of the images.
      path: (first, last, count): samples interpolate from the noise of sample `first`
        to that of `last`, with the conditions of `first`; None if each has its own.
      scales: "classifier" or "guide" -> scale of its gradient guidance; see
        `gradient_guidance.gradient_guidance_scales`.
      record: Entries of the task in `settings.json`.
    """

    count: int
    values: dict[str, FlagValues]
    source: Any
    size: tuple[int, int]
    inpaints: bool
    starts: bool
    invert: bool
    path: tuple[int, int, int] | None
    scales: dict[str, float]
    record: dict[str, Any]


def make_task(
    trained: Trained,
    given: Mapping[str, Any],
    run_options: RunOptions,
    sample_options: SampleOptions,
) -> Task:
    """Makes the task, and checks flags against the model before anything runs.

    Args:
      trained: A Trained.
      given: Flag -> list of strings; see `flag_values.read_flags`.
      run_options: What to draw.
      sample_options: How to sample; only `size` and `strength` are used here.

    Returns:
      A Task.

    Raises:
      ConfigError: If flags are missing, superfluous or wrong.
    """
    ignored = _ignore_label(trained)
    names = Names(class_names(trained), box_names(trained), ignored)
    values = read_flags(given, names)
    strength, invert = sample_options.strength, run_options.invert
    source = _open(trained) if run_options.from_data else None
    have = {*values, *(("image",) if source else ())}
    used = _used_by_conditions(trained, have, source is not None)
    used |= _used_by_tasks(have, strength, invert)
    _refuse_superfluous(trained, values, used)
    values = _fill_labels(trained, values, source)
    size = _check_size(trained, sample_options.size)
    scales = gradient_guidance_scales(trained, values, size, run_options)
    record = _record(values)
    if source:
        section = trained.config.data
        record["from_data"] = f"{section.eval_split} of {section.name}"
    record |= {"size": list(size)}
    record |= {"steering": scales} if scales else {}
    record |= {"invert": True} if invert else {}
    longest = max([16, *(len(v.values) for v in values.values())])
    count = run_options.num_samples or longest
    path, interpolate = None, run_options.interpolate
    if interpolate is not None:
        if count < 2:
            raise ConfigError("--interpolate needs both ends: --num_samples=2 or more")
        path = (*interpolate, count)
        record["interpolate"] = list(path)
    return Task(
        count=count,
        values=values,
        source=source,
        size=size,
        inpaints="mask" in values and not inputs_of(trained.inputs, "mask"),
        starts=strength is not None or invert,
        invert=invert,
        path=path,
        scales=scales,
        record=record,
    )


def warn_of_turns(task: Task) -> None:
    """Warns of files whose lines are not all used, or not by equally many samples.

    Such a file may have been truncated.

    Args:
      task: A Task.
    """
    if task.path:
        return
    for values in task.values.values():
        number, effect = len(values.values), ", which take them in turn"
        if number > task.count:
            effect = f": those after the first {task.count} are of none"
        if values.file and task.count % number:
            logging.warning(
                f"{values.file}: {number} conditions for {task.count} samples{effect}"
            )


def warn_of_cut(trained: Trained, task: Task) -> None:
    """Names prompts of which the model takes only the beginning.

    Args:
      trained: A Trained.
      task: A Task.
    """
    for name in ("caption", "negative_prompt"):
        given = task.values.get(name)
        texts = [] if given is None else given.values[: task.count]
        for key, make in inputs_of(trained.inputs, "caption").items():
            examples = ({"caption": text} for text in texts)
            cut = [e for e in examples if make.is_truncated(e, make(e, None))]
            if cut:
                warn_once(
                    f"{dashed(name)}: {len(cut)} of {len(texts)} have more tokens than "
                    f"data.inputs.{key}.max_length, and lose their end; the first "
                    f"begins {cut[0]['caption'][:60]!r}"
                )


def _record(values):
    """The record of the values in `settings.json`, by the main flag of each."""
    rows = flag_rows()
    named = {rows[name][0].name: value.record for name, value in values.items()}
    return {name: _short(record) for name, record in sorted(named.items())}


def _short(record):
    """Replaces a long list by its hash, as the size of `settings.json` is limited."""
    if not isinstance(record, list) or len(record) <= _MOST_RECORDED:
        return record
    return {"values": len(record), "sha256": digest_json(record)}


def _open(trained):
    section = trained.config.data
    if not section.get("name"):
        raise ConfigError(
            "--from_data: the workdir names no data, as converted ones do; give the "
            "conditions by flags"
        )
    if not section.eval_split:
        raise ConfigError("--from_data: the run holds no data out (data.eval_split)")
    source = open_source(section, section.eval_split)
    require_images(source, "conditions are then given by flags, as --labels")
    if not len(source):
        raise ConfigError(f"--from_data: data.eval_split={section.eval_split} is empty")
    now, then = source.class_names, tuple(trained.class_names)
    if "label" in trained.model.conditioner.entries and now and then and now != then:
        pairs = itertools.zip_longest(now, then, fillvalue="none")
        k, names = next((k, pair) for k, pair in enumerate(pairs) if len(set(pair)) > 1)
        raise ConfigError(
            f"--from_data: the classes of {section.name} have changed since the model "
            f"was trained: class {k} is {names[0]}, was {names[1]}; bring those back, "
            "or give --labels instead"
        )
    return source


def ways(trained: Trained, key: str) -> Sequence[tuple[str, ...]]:
    """Finds which combinations of modalities can provide a condition.

    Args:
      trained: A Trained.
      key: Batch key of the condition.

    Returns:
      Tuples of rows of MODALITIES that go together, the preferred one first.
    """
    if key in trained.inputs:
        return trained.inputs[key].ways
    return (("label",),) if key == "label" else ()


def _used_by_conditions(trained, have, from_data):
    """Modalities that conditions use; an error names the flags that are missing."""
    used = set()
    for key in sorted(trained.model.conditioner.entries):
        choices = ways(trained, key)
        if not choices:
            raise ConfigError(
                f"this model is conditioned on {key}, but its config does not say how "
                f"that is made: give data.inputs.{key} a kind, or use ldm_jax.generate"
            )
        way = next((way for way in choices if have.issuperset(way)), None)
        # Labels are filled in.
        if way is None and not from_data and choices != (("label",),):
            raise ConfigError(_missing(key, choices, have))
        used |= set(way or ())
    return used


def _missing(key, choices, have):
    for way in choices:
        lacking = [name for name in way if name not in have]
        if len(lacking) < len(way):
            given = _flags_of(name for name in way if name in have)
            return (
                f"{given} needs {_flags_of(lacking)} for this model, which is "
                f"conditioned on {key}"
            )
    needed = " or ".join(map(_flags_of, choices))
    return f"this model is conditioned on {key}: give {needed}, or --from_data"


def _used_by_tasks(have, strength, invert):
    """Modalities that tasks on images use; an error names the missing flag."""
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


def _refuse_superfluous(trained, values, used):
    if "caption" in used or inputs_of(trained.inputs, "caption"):
        used = used | {"negative_prompt"}
    used = used | {"guide_image"} | ({"label"} if trained.classifier else set())
    for name in sorted(values.keys() - used, key=dashed):
        if name == "image":
            raise ConfigError(
                "--image is not a condition of this model beyond the other flags: add "
                "--strength (image to image), --mask (inpainting) or --invert, or "
                "leave it out"
            )
        takes = {
            _flags_of(way)
            for key in trained.model.conditioner.entries
            for way in ways(trained, key)
            if way
        }
        raise ConfigError(
            f"{dashed(name)} is not a condition of this model; its conditions take "
            + (", ".join(sorted(takes)) or "no flag, it was trained without")
        )


def _flags_of(names):
    return " and ".join(map(dashed, names))


def class_names(trained: Trained) -> Sequence[str]:
    """Looks up the names of the classes.

    Args:
      trained: A Trained.

    Returns:
      Names in the order of their numbers; empty if there are none.
    """
    of_classifier = trained.classifier.class_names if trained.classifier else []
    return trained.class_names or of_classifier


def box_names(trained: Trained) -> Sequence[str]:
    """Looks up the names of the classes of boxes.

    If `data.box_names` is empty, they are those of images, but not for folders.

    Args:
      trained: A Trained.

    Returns:
      Names in the order of their numbers; empty if there are none.
    """
    section = trained.config.data
    if section.get("box_names") or section.get("source") == "folder":
        return section.get("box_names") or []
    return trained.class_names


def num_classes(trained: Trained) -> int | None:
    """Counts the classes of the condition, or of the classifier that guides.

    Args:
      trained: A Trained.

    Returns:
      Their number; None if there are none.
    """
    if trained.classifier is not None:
        return trained.classifier.module.out_channels
    entry = trained.model.conditioner.entries.get("label")
    return None if entry is None else entry.get("num_classes")


def _ignore_label(trained):
    """The label that means no class; classifiers have none."""
    if trained.classifier is not None:
        return None
    return trained.model.conditioner.entries.get("label", {}).get("ignore_label")


def _fill_labels(trained, values, source):
    """Uses all classes in turn if no labels are given; checks the range of labels."""
    count = num_classes(trained)
    if count is None:
        return values
    if "label" not in values:
        if source and source.num_classes:
            return values
        return values | {"label": FlagValues(tuple(range(count)), list(range(count)))}
    known = {*range(count), _ignore_label(trained)}
    wrong = [label for label in values["label"].values if label not in known]
    if wrong:
        raise ConfigError(
            f"--labels: there is no class '{wrong[0]}'; choose from 0 to {count - 1}"
        )
    return values


def _check_size(trained, size):
    """Height and width, checked to be divisible by first stage and backbone."""
    size = size or [trained.config.data.image_size] * 2
    model = trained.model
    unit = model.first_stage.downsampling_factor * model.backbone.size_multiple
    sides = []
    for name, side in zip(("height", "width"), size, strict=True):
        if side < 1 or side % unit:
            nearest = max(unit, round(side / unit) * unit)
            raise ConfigError(
                f"--{name}={side} is not a multiple of {unit}, which the first stage "
                f"and the backbone divide by: use --{name}={nearest}"
            )
        sides.append(side)
    return tuple(sides)
