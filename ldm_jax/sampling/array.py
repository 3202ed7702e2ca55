"""`samples.npz`: all samples as one array for evaluators, and their conditions."""

import functools
import zipfile

from ldm_jax.files import replacing
from ldm_jax.images import file_values
from ldm_jax.metrics.adm_npz import IMAGES, write_arrays, write_stream
from ldm_jax.sampling.conditions import (
    collect_conditions,
    conditions_from,
    make_example,
)
from ldm_jax.sampling.sample_files import SampleFiles
from ldm_jax.sampling.task import Task
from ldm_jax.store import Place
from ldm_jax.trained import Trained


def write_array(
    trained: Trained, task: Task, seed: int, outdir: Place, store: SampleFiles
) -> None:
    """Writes `samples.npz`, image by image.

    Besides `arr_0` [N, H, W, C], it holds "reference", the given or held-out images, if
    there are any, and the result of `conditions.collect_conditions`.

    Args:
      trained: A Trained.
      task: A Task.
      seed: Seed of the run.
      outdir: Path of the folder.
      store: Where the samples are.
    """
    path, count = outdir / "samples.npz", task.count
    conditions = collect_conditions(trained, task, seed)
    values_of = functools.partial(file_values, pixels=trained.pixels)
    references = (
        values_of(make_example(trained, task, conditions_from(task, k))["image"])
        for k in range(count)
    )
    has_references = "image" in task.values or task.source is not None
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        images = map(values_of, store.images(count))
        shape = write_stream(archive, IMAGES, count, images)
        if has_references:
            write_stream(archive, "reference", count, references)
        write_arrays(archive, conditions)
    others = sorted([*conditions, *["reference"] * has_references])
    others = f"; {', '.join(others)}" if others else ""
    print(f"array: {path} {shape}{others}")
