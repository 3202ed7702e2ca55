"""Metrics of sets during training, such as FID, of the images that a stage makes."""

import hashlib
import json
from collections.abc import Callable

from ldm_jax import peers, tiling
from ldm_jax.checkpoint import Best, TrainState
from ldm_jax.config import to_dict
from ldm_jax.errors import ConfigError
from ldm_jax.images import pixels_of
from ldm_jax.metrics.measurement import Measurement
from ldm_jax.metrics.reference import MOST_ROWS, ReferenceStatistics
from ldm_jax.metrics.set_metrics import SET_METRICS, taps_with_rows
from ldm_jax.store import local_copy
from ldm_jax.training.held_out.eval_options import better_of, eval_options
from ldm_jax.training.held_out.own_reference import own_reference
from ldm_jax.training.start.opened import Run


class RunMetrics:
    """Measures metrics of sets of images, by the section `eval`.

    Attributes:
      options: EvalOptions.
    """

    def __init__(self, run: Run) -> None:
        """Reads the section without computing anything.

        Args:
          run: The run.

        Raises:
          ConfigError: If the section is invalid.
        """
        self.options = eval_options(run.config)
        self._run = run
        self._measurement = self._images = None
        self._noted = set()

    def prepare(self) -> None:
        """Loads the networks and the reference, or computes the run's own reference.

        Raises:
          ConfigError: If the weights or the reference cannot be used.
          DataError: If there are too few images to compute a reference.
        """
        options, run = self.options, self._run
        if not options.every or self._measurement is not None:
            return
        self._images = run.stage.make_images(options, run.mesh, run.data)
        reference = self._given_reference() if options.reference else None
        names, weights = options.distances, options.weights
        try:
            self._measurement = Measurement(names, run.mesh, weights, reference)
        except ConfigError as error:
            raise ConfigError(f"section eval: {error}") from error
        if reference is None and self._compares():
            reference = own_reference(run, self._measurement, options)
            self._measurement.compare_with(reference)
        self._how = self._hash_of_how(reference)

    def _given_reference(self):
        """Loads the reference of the section, and checks it before any computation."""
        place, side = self.options.reference, self._run.config.data.image_size
        rows = taps_with_rows(self.options.distances)
        reference = ReferenceStatistics.load(
            local_copy(place), "eval.reference", rows
        ).thinned(MOST_ROWS)
        values = pixels_of(self._run.config.data).describe_range()
        cut = {"size": [side, side], "values": values}
        reference.check({"preprocessing": cut}, place)
        if not reference.record.get("preprocessing", {}).get("size"):
            self._run.console.line(
                f"eval.reference={place} does not say how large its images were: "
                f"samples are of {side} x {side} pixels"
            )
        return reference

    def _hash_of_how(self, reference):
        """Hash of everything that a result depends on besides the run's weights."""
        options, config = self.options, self._run.config
        how = {
            "samples": [options.num_samples, options.label_mode],
            "sample": to_dict(config.get("sample") or {}),
            "conditions": [config.data.eval_split, self._run.data.num_held_out],
            "networks": self._measurement.record,
            "reference": reference and dict(reference.record),
        }
        text = json.dumps(how, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _compares(self):
        """Whether a metric compares with a reference at all."""
        return any(SET_METRICS[name].needs_reference for name in self.options.distances)

    def measure(
        self, state: TrainState, goes_on: Callable[[], bool]
    ) -> dict[str, float] | None:
        """Makes images and measures them.

        Args:
          state: State of the run.
          goes_on: Function that returns after each batch whether to continue.

        Returns:
          Name -> number, only "num_images" if an image is not finite; None if `goes_on`
          returned False.

        Raises:
          DataError: If there are too few images.
        """
        measurement = self._measurement.twin()
        made = self._images(state, self._run.frozen)
        # The next batch is drawn while the features of one are added up.
        for batch in tiling.one_behind(made):
            if not goes_on():
                return None
            # Padding does not count.
            bad = int((batch.mask & ~batch.finite).sum())
            if bad:
                self._run.console.line(
                    f"warning: step {int(state.step)}: {bad} of {len(batch.mask)} "
                    "images of a batch are not finite; nothing is measured"
                )
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
          step: Step that was measured, which must have a checkpoint.
          numbers: Result of `measure`.
        """
        best = self.options.best
        names = best, f"random-features distance ({best})"
        name = next((name for name in names if name in numbers), None)
        if name is None:
            return
        checkpoints, line = self._run.checkpoints, self._run.console.line
        # The first process's value for all, as rounding may differ.
        value = float(peers.gather(repr(numbers[name]))[0])
        better = better_of(self.options)
        found, before = Best(step, name, value, better, self._how), checkpoints.best
        if not checkpoints.keep_if_best(found):
            return
        line(f"step {step}: the best {name} so far, {value:.4g}")
        if before and not before.compares_with(found):
            line(
                f"the best before, step {before.step} with {before.name} of "
                f"{before.value:.4g}, was measured in another way and is not compared"
            )

    def _note(self, name, note):
        """Prints each note on a result once."""
        if note and (name, note) not in self._noted:
            self._noted.add((name, note))
            self._run.console.line(f"{name}: {note}")
