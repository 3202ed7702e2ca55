"""A Sampler: a model with its weights on the devices and its compiled programs.

    sampler = Sampler.load("runs/demo/class")
    images = sampler(labels=["star", "heart"], seed=0, guidance_scale=4.0, num_steps=20)

`sample.py` uses the same class.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ldm_jax import peers, sharding
from ldm_jax.annotations import Shaped
from ldm_jax.checkpoint import Folder
from ldm_jax.config import suggest
from ldm_jax.diffusion.sample_options import NAMES, SampleOptions
from ldm_jax.errors import ConfigError
from ldm_jax.models.operations.dot_product import Notes, noted
from ldm_jax.sampling.conditions import make_batch
from ldm_jax.sampling.flag_values import flag_rows
from ldm_jax.sampling.options import (
    RunOptions,
    check_given,
    complete,
    parse_interval,
    parse_pair,
    parse_scale,
)
from ldm_jax.sampling.program import fetch, make_draw, put_weights, without_scale
from ldm_jax.sampling.task import Task, make_task, warn_of_cut, warn_of_turns
from ldm_jax.seeds import make_key
from ldm_jax.tiling import one_behind
from ldm_jax.trained import Trained, load_model


class Job(NamedTuple):
    """What to draw, and how.

    Attributes:
      task: Task.
      seed: Seed of the samples.
      options: SampleOptions.
      latents: Whether to return latents instead of images.
    """

    task: Task
    seed: int
    options: SampleOptions
    latents: bool = False


class Sampler:
    """Draws samples on the devices of this process.

    Sample k is a function of the weights, the options, the seed, its conditions and k.
    Each kind of task, size of batches and images, and set of options has a program,
    which is compiled on first use and kept. Other seeds, conditions and guidance scales
    do not recompile.

    Attributes:
      trained: The Trained.
      attentions: Notes on the attention kernels in the newest program.
    """

    def __init__(self, trained: Trained) -> None:
        """Stores the model; nothing is put on the devices yet.

        Args:
          trained: A Trained.
        """
        self.trained, self.attentions = trained, Notes()
        self._mesh = sharding.make_mesh(devices=jax.local_devices())
        self._split = sharding.batch_sharding(self._mesh)
        self._weights, self._programs = None, {}

    @classmethod
    def load(cls, workdir: Folder, **places: Any) -> "Sampler":
        """Loads a model.

        Args:
          workdir: Workdir of a second stage.
          **places: Other arguments of `trained.load_model`: step, average, first_stage,
            decoder, classifier, lpips, data_dir.

        Returns:
          A Sampler.

        Raises:
          CheckpointError: See `trained.load_model`.
          ConfigError: Likewise.
        """
        return cls(load_model(workdir, **places))

    def __call__(
        self,
        *,
        seed: int = 0,
        num_samples: int | None = None,
        batch_size: int = 16,
        size: Any = (None, None),
        latents: bool = False,
        **given: Any,
    ) -> Shaped[np.ndarray, "count height width channels"]:
        """Draws samples 0 to `num_samples` - 1, the same as `sample.py`.

        Args:
          seed: Seed of the samples.
          num_samples: Number of samples; by default one per condition, or 16 if there
            are no conditions or on a path (`interpolate`).
          batch_size: Samples at a time over all devices of this process.
          size: (height, width) in pixels; None is the size of training.
          latents: Whether to return latents of unit variance instead of images.
          **given: Conditions by the names of their flags, each a value or a list of
            values: labels, prompt, files such as image; options of sampling, such as
            guidance_scale, num_steps and sampler; and of the task, such as invert.

        Returns:
          Images [N, H, W, C] in the type of a batch, by default uint8; with `latents`
          float32 [N, h, w, c].

        Raises:
          ConfigError: If an argument is unknown, missing, empty or wrong, or a sample
            is not finite.
        """
        conditions, sampling, asked = _sorted(given)
        check_given(sampling)
        run_options = RunOptions(
            num_samples=num_samples, seed=seed, batch_size=batch_size, **asked
        )
        options = complete(self.trained, sampling, _plain(size), run_options.invert)
        task = make_task(self.trained, conditions, run_options, options)
        if num_samples is None and conditions and task.path is None:
            longest = max(len(values.values) for values in task.values.values())
            task = task._replace(count=longest)
        warn_of_turns(task)
        warn_of_cut(self.trained, task)
        job = Job(task, seed, options, latents)
        drawn = self.draw(job, [range(task.count)], min(batch_size, task.count))
        return np.concatenate([images for _, _, images in drawn])

    def draw(
        self, job: Job, parts: Sequence[Sequence[int]], batch_size: int
    ) -> Iterator[tuple[Sequence[int], dict[str, Any], Shaped[np.ndarray, "..."]]]:
        """Draws samples batch by batch; while one is used, the next is computed.

        Args:
          job: What to draw, and how.
          parts: Numbers of the samples, in parts; no batch is in two parts.
          batch_size: Samples at a time, rounded up to a multiple of the devices.

        Yields:
          (numbers, batch on the host, images or latents [numbers, ...]).

        Raises:
          ConfigError: If something cannot be read, or a sample is not finite.
        """
        batches = (
            each for part in parts for each in self.batches(job, part, batch_size)
        )
        drawn = ((*each, self.lower(job, each[1])()(each[1])) for each in batches)
        for numbers, batch, images in one_behind(drawn):
            yield numbers, batch, fetch(images, numbers)
            peers.progress()

    def batches(
        self, job: Job, indices: Sequence[int], batch_size: int
    ) -> Iterator[tuple[Sequence[int], dict[str, Any]]]:
        """Makes the batches of samples.

        Args:
          job: What to draw.
          indices: Numbers of the samples.
          batch_size: Samples at a time, rounded up to a multiple of the devices.

        Yields:
          (numbers, batch on the host), the last batch padded, so that one program
          serves all.

        Raises:
          ConfigError: If a file or a held-out example cannot be read.
        """
        size = self.round_up(batch_size)
        for first in range(0, len(indices), size):
            part = indices[first : first + size]
            padded = np.resize(np.asarray(part, np.int32), size)
            yield part, make_batch(self.trained, job.task, job.seed, padded)

    def round_up(self, batch_size: int) -> int:
        """Rounds a batch size up to a multiple of the number of devices.

        Args:
          batch_size: Samples at a time.

        Returns:
          The multiple.
        """
        return -(-batch_size // self._mesh.size) * self._mesh.size

    def lower(
        self, job: Job, batch: Mapping[str, Any]
    ) -> Callable[[], Callable[[Mapping[str, Any]], Any]]:
        """Finds the program for batches of this shape, or traces it.

        Args:
          job: What to draw, and how.
          batch: Batch on the host.

        Returns:
          Function that compiles the program, if needed, and returns it: a function of
          host batches -> argument of `fetch`.

        Raises:
          ConfigError: If the options are not compatible with each other or the model.
        """
        options, scale = without_scale(job.options)
        task, leaves = job.task, jax.tree_util.tree_flatten_with_path(batch)[0]
        shapes = tuple((str(path), v.shape, str(v.dtype)) for path, v in leaves)
        kind = (task.size, task.inpaints, task.starts, task.invert, bool(task.path))
        name = kind, tuple(sorted(task.scales.items())), options, job.latents, shapes
        if self._weights is None:
            self._weights = put_weights(self.trained, self._mesh)
        others = make_key(job.seed), None if scale is None else np.float32(scale)
        lowered = None
        if name not in self._programs:
            draw = make_draw(self.trained, task, options, self._mesh, job.latents)
            try:
                with noted() as self.attentions:
                    lowered = draw.lower(self._weights, self._put(batch), *others)
            except ValueError as error:
                raise ConfigError(str(error)) from error

        def compiled():
            if name not in self._programs:
                self._programs[name] = lowered.compile()
            program = self._programs[name]
            return lambda batch: program(self._weights, self._put(batch), *others)

        return compiled

    def _put(self, batch):
        return jax.device_put(batch, self._split)


def _sorted(given):
    """Sorts arguments into conditions, sampling options and options of the task."""
    flags = {flag.name for row in flag_rows().values() for flag in row}
    fields = {field.name for field in dataclasses.fields(RunOptions)}
    fields &= {"from_data", "invert", "interpolate", "classifier_scale", "guide_scale"}
    for name in given:
        if name not in {*flags, *NAMES, *fields}:
            raise ConfigError(f"{name}: {suggest(name, {*flags, *NAMES, *fields})}")
    conditions = {
        name: _texts(name, value)
        for name, value in given.items()
        if name in flags and value is not None
    }
    given = {name: _plain(value) for name, value in given.items()}
    # Text is parsed as on the command line.
    for name, parse in _PARSERS.items():
        if isinstance(given.get(name), str):
            given[name] = parse(given[name])
    sampling = {name: value for name, value in given.items() if name in NAMES}
    asked = {name: value for name, value in given.items() if name in fields}
    return conditions, sampling, asked


_PARSERS = {
    "guidance_scale": parse_scale,
    "guidance_interval": parse_interval,
    "interpolate": parse_pair,
}


def _texts(name, value):
    """A value or several, as a list of strings like that of the flag."""
    value = [value] if _is_one(value) else list(value)
    if not value:
        raise ConfigError(f"{name} is empty: give a value, or leave it out")
    if not all(map(_is_one, value)):
        raise ConfigError(
            f"{name} must be text or a number, or a list of those, and of arrays and "
            f"images the paths of files; got values of type {type(value[0]).__name__}"
        )
    return [str(each) for each in value]


def _is_one(value):
    return isinstance(value, str) or not isinstance(value, Iterable)


def _plain(value):
    """Converts an array of at most one axis to a list or a number."""
    is_array = isinstance(value, np.ndarray | jax.Array)
    return value.tolist() if is_array and value.ndim < 2 else value
