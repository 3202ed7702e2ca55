"""Measures the rows of a sweep; model, networks and reference are loaded once.

Each finished row is a JSON file in the folder, and an interrupted row resumes from its
saved state.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from ldm_jax import peers
from ldm_jax.diffusion.sample_options import SampleOptions
from ldm_jax.errors import ConfigError, DataError
from ldm_jax.evaluation.compare import Comparison, open_measurement
from ldm_jax.evaluation.drawn import Drawing, Plan, draw_set
from ldm_jax.evaluation.resuming import Saved, agree, difference
from ldm_jax.evaluation.scoring import measure, say, settings_of
from ldm_jax.evaluation.sweep.grid import name_of, title_of, values_of
from ldm_jax.files import write_json
from ldm_jax.metrics.set_metrics import Result
from ldm_jax.reading import MAX_TEXT, read_file
from ldm_jax.store import Place, exists, raise_if_silent


class Row(NamedTuple):
    """A row of a sweep.

    Attributes:
      values: Sampler, number of steps and guidance scale, see `grid.values_of`.
      results: Name -> result.
    """

    values: dict[str, Any]
    results: dict[str, Result]


def measure_rows(
    drawing: Drawing, settings: Sequence[SampleOptions], plan: Plan, how: Comparison
) -> list[Row]:
    """Draws and measures the samples of each row that has no file yet.

    Args:
      drawing: The model that draws the samples.
      settings: Sampling options of each row, with a size.
      plan: Which samples to draw; the same noise and conditions in all rows.
      how: How they are measured.

    Returns:
      The rows, in order.

    Raises:
      ConfigError: If the settings do not fit together, or the folder has rows of other
        settings.
      DataError: If images or rows cannot be read.
    """
    folder = how.outdir / "rows"
    sets = [draw_set(drawing, options, plan)[0] for options in settings]
    measurement, more = open_measurement(sets[0], how, drawing.mesh)
    rows = []
    for number, (options, images) in enumerate(zip(settings, sets, strict=True), 1):
        values = values_of(options)
        path = folder / f"{name_of(values)}.json"
        record = settings_of(images, measurement, more)
        results = _load(path, record)
        if results is None:
            say(f"row {number} of {len(sets)}: {title_of(values)}")
            twin = measurement.twin()
            saved = Saved(path.with_suffix(".partial.npz"), record, how.save_every)
            measure(images, twin, saved)
            results = twin.results()
            if not jax.process_index():
                details = {name: each._asdict() for name, each in results.items()}
                write_json(path, {"settings": record, "results": details})
            # The state is removed once the row is written, for all processes.
            peers.gather("the row is written")
            saved.remove()
        rows.append(Row(values, results))
        found = ", ".join(f"{n} {each.value:.4f}" for n, each in results.items())
        say(f"{title_of(values)}: {found}")
    return rows


def _load(path: Place, record: Mapping[str, Any]) -> dict[str, Result] | None:
    """The results of an existing row, or None; every process must call it."""
    found = _read(path) if exists(path) else None
    agree(path, "not there" if found is None else "there")
    if found is None:
        return None
    other = difference(found["settings"], record)
    if other is not None:
        key, there, here = other
        raise ConfigError(
            f"{path} is a row of a sweep with other settings ({key}: {there} there, "
            f"{here} here): use another --outdir, or remove it"
        )
    return {name: Result(**each) for name, each in found["results"].items()}


def _read(path):
    try:
        found = json.loads(read_file(path, MAX_TEXT))
        return {"settings": dict(found["settings"]), "results": found["results"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise_if_silent(path, error)
        raise DataError(
            f"{path} cannot be read as a row of a sweep ({error!r}): remove it to "
            "measure it again"
        ) from error
