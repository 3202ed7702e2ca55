"""Measures a set of images batch by batch; a resumed run gives the same digits."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ldm_jax import peers, sharding
from ldm_jax.annotations import Int
from ldm_jax.batches import Batch, Images
from ldm_jax.console import Console
from ldm_jax.errors import DataError
from ldm_jax.evaluation.image_sets import ImageSet
from ldm_jax.evaluation.resuming import Saved, difference
from ldm_jax.lock import require_held
from ldm_jax.metrics.adm_npz import ImageFile
from ldm_jax.metrics.measurement import Measurement
from ldm_jax.metrics.set_metrics import Result
from ldm_jax.reading import MAX_TEXT, parse_json, read_file
from ldm_jax.store import Place, raise_if_silent

# Keys of the state: numbers of the images left out; whether the images are kept.
_LEFT_OUT, _KEPT = "left_out", "kept"

# Seconds between two lines of progress.
_EVERY = 30.0


def measure(
    images: ImageSet,
    measurement: Measurement,
    saved: Saved,
    keep: ImageFile | None = None,
) -> list[int]:
    """Measures all images of a set; every process must call it.

    Args:
      images: The set.
      measurement: The empty Measurement to add them to.
      saved: The saved state, of an interrupted run and of this one.
      keep: File to which the first process also writes the images, or None.

    Returns:
      The numbers of the images that could not be read and were left out.

    Raises:
      ConfigError: If the interrupted run had other settings.
      DataError: If images cannot be read, or fewer than two can.
      DiskError: If the state or the images cannot be written.
    """
    position, left_out = _begin(images, measurement, saved, keep)
    progress = Progress(images, position)
    for end, batch in images.batches(position):
        require_held()
        real = sharding.gathered(batch["mask"])
        tokens = None
        if images.tokens is not None:
            numbers = np.where(real, numbers_of(batch, position), -1)
            tokens = images.tokens(numbers)
        measurement.add(batch["image"], batch["mask"], tokens)
        if keep is not None:
            _keep(keep, position, batch["image"], real)
        left_out += _left_out(batch, real, position, end, len(left_out))
        position = end
        progress.advance(position)
        if position < images.count and saved.due(position):
            if keep is not None and not jax.process_index():
                keep.flush()
            more = {_LEFT_OUT: np.array(left_out, np.int64), _KEPT: keep is not None}
            saved.save(position, measurement.state() | more)
    progress.close()
    if position < images.count:
        # The set ended with fewer samples, as some conditions cannot be read.
        left_out += range(position + len(left_out), images.end)
    if measurement.count < 2:
        raise DataError(
            f"{measurement.count} of the {images.count:,} images of {images.name} can "
            "be read: a metric of sets needs two or more"
        )
    return left_out


def _begin(images, measurement, saved, keep):
    """(position, numbers of images left out so far) of a resumed or a new run."""
    position, state = saved.load()
    if keep is not None and state:
        goes_on = bool(state[_KEPT]) and keep.is_begun()
        # Only the first process has the file with the images.
        if peers.gather(str(goes_on))[0] != str(True):
            say("a cut run has kept no images: all are taken again")
            position, state = 0, {}
            saved.begin_anew()
    if keep is not None and not jax.process_index():
        keep.open(again=not state)
    if not state:
        return 0, []
    measurement.restore(state)
    say(f"{position:,} of {images.count:,} images are measured already")
    return position, state[_LEFT_OUT].tolist()


def numbers_of(batch: Batch, position: int) -> Int[np.ndarray, " batch"]:
    """Returns the numbers of a batch's images; every process must call it.

    Args:
      batch: See `ImageSet.batches`.
      position: Number of images before the batch.

    Returns:
      int [B].
    """
    if "index" not in batch:
        return position + np.arange(len(batch["image"]))
    return sharding.gathered(batch["index"])


def _left_out(batch, real, position, end, before):
    """Numbers of the images missing from a batch; every process must call it."""
    if "index" not in batch:
        gaps = position + np.flatnonzero(~real)
        return gaps[gaps < end].tolist()
    # Here a position counts only the samples that are drawn.
    numbers = numbers_of(batch, position)[real]
    return np.setdiff1d(np.arange(position + before, numbers[-1]), numbers).tolist()


def _keep(keep, position, images, real):
    """Writes the images of a batch that count; every process must call it."""
    images = sharding.gathered(images)
    if not jax.process_index():
        keep.write(position, images[real])


def count_unreadable(images: ImageSet | Images, count: int) -> dict[str, Any]:
    """Counts what could not be read of a set, for its record.

    Args:
      images: The set, or opened data.
      count: How many of its images were read.

    Returns:
      JSON-like dict: "unreadable", the number of images, and of files and folders left
      out when the set was opened; and "left_out", the names of the latter, if any.
    """
    record = {"unreadable": images.count - count + len(images.left_out)}
    # If nothing was left out, the record is that of older versions.
    return record | ({"left_out": images.left_out} if images.left_out else {})


def say(text: str) -> None:
    """Prints a line, on the first process.

    Args:
      text: The line.
    """
    if not jax.process_index():
        print(text, flush=True)


def read_finished(
    path: Place, settings: Mapping[str, Any], keys: Sequence[str] = ()
) -> tuple[dict[str, Result], dict[str, Any]] | None:
    """Reads the results of a finished evaluation, or prints that they are replaced.

    Args:
      path: Its `metrics.json`.
      settings: Settings of the evaluation to run.
      keys: Further keys that its record must have.

    Returns:
      (results, more): name -> result, and key -> value of `keys`; None if there is no
      file, or, with a line printed, if it has other settings or is not such a record.

    Raises:
      Unreachable: If the storage of the file does not answer.
    """
    try:
        record = parse_json(read_file(path, MAX_TEXT))
        there = {key: record.get(key) for key in settings}
        found = {k: Result(**v) for k, v in record["details"].items()}
        more = {key: record[key] for key in keys}
    # A file that is not the record of a finished run is replaced.
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise_if_silent(path, error)
        if not isinstance(error, FileNotFoundError):
            _say_replaced(f"{path} is no record of an evaluation that is through")
        return None
    other = difference(there, settings)
    if other is not None:
        key, was, is_now = other
        _say_replaced(
            f"{path} is of other settings ({key}: {was} there, {is_now} here)"
        )
        return None
    return found, more


def _say_replaced(what):
    # Samples take hours to draw, and their file name does not give their settings.
    advice = "what lies beside it and is not written again is not of these settings"
    say(f"{what}: it is replaced; {advice}")


class Progress:
    """Shows the progress of a measurement, and logs it from time to time."""

    def __init__(self, images: ImageSet, position: int) -> None:
        """Starts the progress bar.

        Args:
          images: The set.
          position: Number of its images that are measured already.
        """
        self._first, self._count, self._start = position, images.count, None
        self._console = Console(images.count, position, not jax.process_index())
        self._position = position
        self._said = time.monotonic()

    def advance(self, position: int) -> None:
        """Reports that a batch is done; every process must call it.

        Args:
          position: Number of images that are measured now.
        """
        now = time.monotonic()
        if self._start is None:
            # The speed leaves out the first batch, which waits for the compilation.
            self._start, self._first = now, position
        for _ in range(position - self._position):
            self._console.advance()
        self._position = position
        peers.progress()
        if now - self._said > _EVERY and now > self._start:
            speed = (position - self._first) / (now - self._start)
            text = f"{position:,}/{self._count:,} images, {speed:.1f}/s"
            self._console.line(text)
            self._said = now

    def close(self) -> None:
        """Closes the progress bar."""
        self._console.close()


def settings_of(
    images: ImageSet, measurement: Measurement, more: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Collects everything that the results of a measurement depend on.

    Args:
      images: The set.
      measurement: The Measurement of the set.
      more: Further settings.

    Returns:
      JSON-like dict.
    """
    return {
        "images": images.record,
        "networks": measurement.record,
        "distances": list(measurement.metrics),
    } | dict(more or {})
