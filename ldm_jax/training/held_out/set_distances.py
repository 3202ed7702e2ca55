"""Distances of the images that a stage makes to those that it should make."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ldm_jax import peers, tiling
from ldm_jax.checkpoint import Best, TrainState
from ldm_jax.errors import ConfigError
from ldm_jax.metrics.distances import DISTANCES, taps_with_rows
from ldm_jax.metrics.measurement import Measurement
from ldm_jax.metrics.reference import ReferenceStatistics
from ldm_jax.training.held_out.eval_options import better_of, eval_options
from ldm_jax.training.start import Run

# Statistics of the run's own images, in its workdir.
_FILE = "eval_reference.npz"


class SetDistances:
    """Measures sets of images, as the section `eval` says.

    Attributes:
      options: EvalOptions.
    """

    def __init__(self, run: Run, frozen: Any) -> None:
        """Reads the section; nothing is computed.

        Args:
          run: The run.
          frozen: Frozen weights of its stage, on the devices of the mesh.

        Raises:
          ConfigError: If the section is wrong.
        """
        self.options = eval_options(run.config)
        self._run, self._frozen = run, frozen
        self._measurement = self._images = None
        self._noted = set()

    def prepare(self) -> None:
        """Loads the networks and the reference, which is made if it is not there.

        Raises:
          ConfigError: If the weights or the reference cannot be used.
          DataError: If there are no images to make one of.
        """
        options, run = self.options, self._run
        if not options.every or self._measurement is not None:
            return
        self._images = run.stage.make_images(options, run.mesh, run.data)
        side = run.config.data.image_size
        cut, given = {"size": [side, side]}, None
        if options.reference:
            # Compared before it costs anything.
            rows = taps_with_rows(options.distances)
            given = ReferenceStatistics.load(options.reference, "eval.reference", rows)
            given.check({"preprocessing": cut}, options.reference)
        names, weights = options.distances, options.weights
        try:
            self._measurement = Measurement(names, run.mesh, weights, given)
        except ConfigError as error:
            raise ConfigError(f"section eval: {error}") from error
        if given is None and self._compares():
            self._measurement.compare_with(self._own_reference(cut))

    def _compares(self):
        """Whether a distance compares with a reference at all."""
        return any(DISTANCES[name].needs_reference for name in self.options.distances)

    def measure(
        self, state: TrainState, goes_on: Callable[[], bool]
    ) -> dict[str, float] | None:
        """Makes images and measures them.

        Args:
          state: State of the run.
          goes_on: Says after each batch whether to go on.

        Returns:
          Name -> number, "num_images" alone where images are not of finite numbers;
          None if it was cut.

        Raises:
          DataError: If they are too few.
        """
        measurement = self._measurement.twin()
        made = self._images(state, self._frozen)
        # The next batch is drawn while the features of one are added up.
        for batch in tiling.one_behind(made):
            if not goes_on():
                return None
            if not np.asarray(batch.finite).all():
                text = "warning: the model makes images that are not finite"
                self._run.console.line(f"{text}; they are not measured")
                return {"num_images": 0}
            measurement.add(batch.images, batch.mask)
        numbers = {}
        for name, result in measurement.results().items():
            numbers[name] = result.value
            if result.deviation is not None:
                numbers[f"{name}_deviation"] = result.deviation
            self._note(name, result.note)
        return numbers | {"num_images": measurement.count}

    def keep_best(self, step: int, numbers: dict[str, float]) -> None:
        """Keeps the checkpoint of a step if it is the best one so far.

        Args:
          step: Step that was measured, of which there is a checkpoint.
          numbers: What `measure` gave.
        """
        best = self.options.best
        names = best, f"random-features distance ({best})"
        name = next((name for name in names if name in numbers), None)
        if name is None:
            return
        # That of the first process, where rounding differs.
        value = float(peers.gather(repr(numbers[name]))[0])
        better = better_of(self.options)
        if self._run.checkpoints.keep_if_best(Best(step, name, value, better)):
            self._run.console.line(f"step {step}: the best {name} so far, {value:.4g}")

    def _note(self, name, note):
        """Says once what must be known to read a result."""
        if note and (name, note) not in self._noted:
            self._noted.add((name, note))
            self._run.console.line(f"{name}: {note}")

    def _own_images(self):
        """What the run's own reference is of."""
        run, options = self._run, self.options
        held_out = run.config.stage == "autoencoder"
        count = options.num_samples if held_out else options.reference_images
        data, section = run.data.record(), run.config.data
        split = section.eval_split if held_out else section.split
        what = [data, section.name, split, count, run.data.num_held_out]
        digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode())
        return {
            "name": f"{section.name}, {split}",
            "held_out": held_out,
            "limit": count,
            "images": digest.hexdigest(),
            "distances": list(options.distances),
        }

    def _own_reference(self, cut):
        """Reads the run's own reference, or makes it where there is none of this."""
        # As the loader cuts what it does not augment.
        cut = cut | {"crop": "center", "resize": "bicubic, antialiased"}
        networks = self._measurement.record
        record = self._own_images() | {"preprocessing": cut, "networks": networks}
        path = self._run.checkpoints.workdir / _FILE
        found = ""
        if jax.process_index() == 0 and path.exists():
            try:
                theirs = dict(ReferenceStatistics.load(path, rows=()).record)
            except ConfigError:
                theirs = {}
            theirs.pop("count", None)
            found = "yes" if theirs == json.loads(json.dumps(record)) else ""
        # All processes do as the first one does.
        if peers.gather(found)[0]:
            rows = taps_with_rows(self.options.distances)
            return ReferenceStatistics.load(path, rows=rows)
        return self._make_reference(record, path)

    def _make_reference(self, record, path):
        line = self._run.console.line
        line(f"reference statistics of {record['name']} are made, once")
        measurement = self._measurement.twin()
        held_out, count = record["held_out"], record["limit"]
        size = self.options.batch_size
        for batch in self._run.data.images_alone(held_out, count, size):
            measurement.add(batch["image"], batch["mask"])
            peers.progress()
        made = measurement.statistics()
        count = measurement.count
        reference = ReferenceStatistics(made, record | {"count": count})
        if jax.process_index() == 0:
            reference.save(path)
        line(f"reference statistics of {count:,} images: {path}")
        return reference
