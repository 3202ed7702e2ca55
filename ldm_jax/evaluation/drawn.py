"""Samples of a trained second stage as a set of images, drawn while they are measured.

They are drawn on all devices of all processes and stay there: none is written to disk.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from ldm_jax import peers, sharding
from ldm_jax.annotations import Int
from ldm_jax.batches import Batch
from ldm_jax.checkpoint import tree_checksum
from ldm_jax.config import choose, to_dict
from ldm_jax.data.inputs import inputs_of, needed_keys
from ldm_jax.data.loader import make_loader
from ldm_jax.data.open_source import open_source
from ldm_jax.data.sources import left_out, require_images
from ldm_jax.diffusion.sample_options import SampleOptions
from ldm_jax.errors import CheckpointError, ConfigError
from ldm_jax.eval_samples import (
    LABEL_MODES,
    condition_batches,
    make_draw,
    needs_examples,
    plan_labels,
    planned_label,
)
from ldm_jax.evaluation.captions import OneCaption, Prompts, add_captions
from ldm_jax.evaluation.image_sets import AS_THEY_ARE, ImageSet
from ldm_jax.sampling.options import record_of
from ldm_jax.sampling.program import without_scale
from ldm_jax.tiling import one_behind
from ldm_jax.trained import Trained


class Plan(NamedTuple):
    """Which samples to draw.

    Attributes:
      count: Number of samples; None for one per held-out example.
      batch_size: Global batch size.
      label_mode: Row of LABEL_MODES, for a model whose only condition is a class.
      seed: Seed of everything random.
      split: Split whose examples give other conditions; None for the held-out one.
      skip_unreadable: Whether examples that cannot be read are skipped; if too few are
        left, fewer samples are drawn.
      prompts_file: File whose captions, one a line, are the conditions; None for those
        of examples.
      tokenizer: CLIP's tokenizer, to measure samples against the captions that they
        are drawn from; None if they are not.
    """

    count: int | None
    batch_size: int = 16
    label_mode: str = "random"
    seed: int = 0
    split: str | None = None
    skip_unreadable: bool = False
    prompts_file: str | None = None
    tokenizer: str | None = None


class Drawing:
    """A second stage to draw samples with: weights on the devices, compiled programs.

    Sets of one Drawing share both. One program serves all guidance scales.

    Attributes:
      trained: The model.
      mesh: Mesh over the devices of all processes.
      checksums: Checksums of the weights: "model", "first_stage" and "statistics".
        A model retrained in the same folder is recognised by them as another one.
    """

    def __init__(self, trained: Trained, mesh: Mesh) -> None:
        """Puts nothing on the devices yet; every process must call it.

        Args:
          trained: The model.
          mesh: Mesh over the devices of all processes.

        Raises:
          CheckpointError: If the model differs from process to process.
        """
        self.trained, self.mesh = trained, mesh
        trees = {"model": trained.params, **trained.frozen}
        self.checksums = {k: f"{tree_checksum(v):08x}" for k, v in trees.items()}
        _check_same(trained, self.checksums)
        self._weights, self._programs = None, {}

    def program(self, options: SampleOptions, seed: int) -> Callable:
        """Returns the program that draws a batch.

        Args:
          options: How to sample, with a size.
          seed: Seed of the samples.

        Returns:
          Function of `Conditions` -> (images, finite), see `eval_samples.make_draw`.
        """
        trained, mesh = self.trained, self.mesh
        if self._weights is None:
            weights = (trained.params, trained.frozen)
            shardings = sharding.tree_shardings(weights, mesh)
            self._weights = sharding.put_tree(weights, shardings)
        key, scale = without_scale(options)
        if (key, seed) not in self._programs:
            made = make_draw(trained.model, key, mesh, seed, trained.pixels)
            self._programs[key, seed] = made
        draw = self._programs[key, seed]
        return lambda each: draw(*self._weights, each.inputs, each.index, scale)


def draw_set(
    drawing: Drawing, options: SampleOptions, plan: Plan
) -> tuple[ImageSet, Int[np.ndarray, " count"] | None]:
    """Makes the set of samples; they are drawn when its batches are read.

    Args:
      drawing: The model that draws them.
      options: How to sample, with a size.
      plan: Which samples to draw.

    Returns:
      (set, labels): an ImageSet, and for a class-conditional model the classes, int32
      [count], else None.

    Raises:
      ConfigError: If there are fewer conditions than samples.
    """
    choose(LABEL_MODES, plan.label_mode, "--label_mode")
    trained, mesh = drawing.trained, drawing.mesh
    model, label = trained.model, planned_label(trained.model)
    source, conditions = _open_examples(trained, plan)
    count = _count(plan, source)
    labels = label and plan_labels(plan.label_mode, label[1], count, plan.seed)
    if label is not None:
        conditions = {"label_mode": plan.label_mode}
    plan = plan._replace(count=count)
    record = {
        "checkpoint": trained.source,
        "weights": trained.weights,
        "first_stage": trained.first_stage,
        "checksums": drawing.checksums,
        "seed": plan.seed,
        "conditions": conditions,
        "sample": record_of(options, model),
        "preprocessing": AS_THEY_ARE | {"values": trained.pixels.describe_range()},
    }

    def batches(start):
        return _draw(drawing, options, plan, source, start)

    name = f"samples of {trained.source} ({trained.weights})"
    images = ImageSet(name, count, options.size, batches, record)
    images.describe = "sample {}".format
    if source is not None:
        images.end, images.left_out = len(source), left_out(source)
        images.describe = lambda k: f"sample {k} ({source.describe(k)})"
    if plan.tokenizer is not None and inputs_of(trained.inputs, "caption"):
        add_captions(images, source, plan.tokenizer, mesh)
    return images, labels


def _count(plan, source):
    """The number of samples to draw, at most that of the conditions."""
    count = plan.count
    if count is None and source is None:
        raise ConfigError("--num_samples is not given: say how many samples to draw")
    if source is None:
        return count
    most = len(source)
    if count is not None and count > most:
        where = f"--prompts_file={plan.prompts_file} gives"
        more = "give a longer file"
        if plan.prompts_file is None:
            where, more = "the examples held out give", "name a larger split (--split)"
        raise ConfigError(
            f"--num_samples={count}: {where} conditions for {most} samples: ask for "
            f"{most} or fewer, or {more}"
        )
    return most if count is None else count


def _open_examples(trained, plan):
    """(source, record) of the examples that give the conditions, or (None, None)."""
    needed = needed_keys(trained.inputs)
    if plan.prompts_file is not None:
        if needed != sorted(_caption_keys(trained)) or not needs_examples(
            trained.model
        ):
            takes = ", ".join(trained.model.conditioner.entries) or "nothing"
            raise ConfigError(
                f"--prompts_file={plan.prompts_file}: captions are not all that the "
                f"model is conditioned on, which is {takes}; leave it out"
            )
        source = Prompts(plan.prompts_file)
        where = {"prompts_file": os.path.basename(plan.prompts_file)}
        return source, where | {"examples": source.fingerprint()}
    if not needs_examples(trained.model):
        return None, None
    section = to_dict(trained.config.data)
    split = plan.split or section.get("eval_split")
    if not section.get("source") or not split:
        raise ConfigError(
            "the samples need conditions of held-out examples and the run holds none "
            "out: name a split of its data with --split"
        )
    source = open_source(section, split)
    if getattr(source, "encoded", False):
        if plan.tokenizer is not None:
            require_images(source, "give captions to compare with, by --prompts_file")
        return source, {"split": split, "examples": source.fingerprint()}
    made = list(inputs_of(trained.inputs, "caption").values())
    fallback = made[0].fallback if made else None
    source = OneCaption(source, _caption_keys(trained) or ["caption"], fallback)
    return source, {"split": split, "examples": source.fingerprint()}


def _caption_keys(trained):
    """Keys of examples that hold captions."""
    made = inputs_of(trained.inputs, "caption").values()
    return list(dict.fromkeys(key for make in made for key in make.needs))


def _examples(trained, mesh, plan, source):
    """Yields global batches of examples with their inputs."""
    section = to_dict(trained.config.data)
    section["on_error"] = "skip" if plan.skip_unreadable else "raise"
    section["inputs"] = to_dict(section.get("inputs") or {})
    size = -(-min(plan.batch_size, len(source)) // mesh.size) * mesh.size
    rows = sharding.own_rows(mesh, size)
    loader = make_loader(
        source, section, batch_size=size, seed=plan.seed, train=False, rows=rows
    )
    keys = {"image", "mask", *trained.model.conditioner.entries}
    try:
        for batch in loader:
            batch = {key: batch[key] for key in keys & batch.keys()}
            yield sharding.put_batch(batch, mesh)
    finally:
        loader.close()


def _draw(
    drawing: Drawing, options: SampleOptions, plan: Plan, source: Any, start: int
) -> Iterator[tuple[int, Batch]]:
    """Yields (position, batch) of the samples, beginning at the position `start`."""
    trained, mesh = drawing.trained, drawing.mesh
    draw = drawing.program(options, plan.seed)
    conditions = condition_batches(
        trained.model,
        mesh,
        plan.count,
        plan.batch_size,
        label_mode=plan.label_mode,
        seed=plan.seed,
        examples=source and _examples(trained, mesh, plan, source),
        start=start,
    )
    drawn = ((each, draw(each)) for each in conditions)
    # The devices draw the next batch while the features of this one are computed.
    for each, (images, finite) in one_behind(drawn):
        real = sharding.gathered(each.mask)
        # Padding rows of a batch may hold anything.
        if not (np.asarray(finite) | ~real).all():
            raise CheckpointError(
                f"samples of {trained.source} are not finite: its weights are damaged, "
                "or the options carry them away; look at the run's losses"
            )
        start += int(real.sum())
        yield start, {"image": images, "mask": each.mask, "index": each.index}


def _check_same(trained, checksums):
    """Checks that all processes have the same model; all must call it."""
    weights = " ".join(checksums.values())
    found = peers.gather(f"{trained.source[-150:]} {trained.weights} {weights}")
    if len(set(found)) > 1:
        places = "; ".join(f"process {i}: {text}" for i, text in enumerate(found))
        raise CheckpointError(
            f"the model is not the same on all hosts ({places}): give --step, or copy "
            "one to all of them"
        )
