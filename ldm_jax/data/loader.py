"""Batches of examples: shuffled, sharded over processes, in the order of the steps.

Grain permutes the examples anew in each epoch, calls `batches.LoadBatch` on the steps
ahead of time, in threads or in worker processes, and hands the batches over in order.
So the position in the data is the step number: a run that resumes at step n asks for
`start_step=n`, with as many workers and processes as it likes.

With workers, the main module must be guarded by `if __name__ == "__main__"`: they are
spawned, which imports it again.
"""

import collections
import functools
import multiprocessing
import os
import re
import shutil
import signal
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags, logging
from ml_collections import ConfigDict

from ldm_jax.annotations import Shaped
from ldm_jax.config import build, to_dict
from ldm_jax.data.inputs import (
    Input,
    held_out_inputs,
    make_inputs,
)
from ldm_jax.data.load_batch import (
    LOADER_OPTIONS,
    LoadBatch,
    LoaderOptions,
    require_whole,
)
from ldm_jax.data.orders.bucket_order import BucketOrder
from ldm_jax.data.orders.buckets import assign, bucket_shapes, make_buckets
from ldm_jax.data.orders.order import Shuffled
from ldm_jax.errors import ConfigError, DataError, ProcessLost, Unreachable
from ldm_jax.seeds import to_32_bits

# Steps that are loaded ahead, and the threads that do it, in a process that loads.
AHEAD, THREADS = 4, 4

Section = Mapping[str, Any] | ConfigDict


def make_loader(
    source: Any,
    data: Section,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    train: bool = True,
    rows: Sequence[int] | None = None,
    check: Callable[[Mapping[str, Any]], None] | None = None,
) -> "Loader":
    """Makes the loader that the config section `data` describes.

    Args:
      source: Opened source.
      data: Section with the fields of LoaderOptions, such as "image_size" and "crop",
        and "inputs", see `inputs/`. Other keys are the source's.
      batch_size: Global batch size.
      seed: Seed of the order, the crops and the mirroring.
      start_step: First step in training.
      train: Training, or one pass in order.
      rows: Rows of each global batch that this process loads; None for all.
      check: See LoaderOptions.

    Returns:
      A Loader.

    Raises:
      ConfigError: If an option is wrong.
    """
    section = to_dict(data)
    options = {key: section[key] for key in LOADER_OPTIONS if key in section}
    inputs = make_inputs(section.get("inputs"))
    try:
        return Loader(
            source,
            build(
                LoaderOptions,
                options,
                "data",
                check=check,
                buckets=make_buckets(section),
            ),
            inputs if train else held_out_inputs(inputs),
            batch_size=batch_size,
            seed=seed,
            start_step=start_step,
            train=train,
            rows=rows,
        )
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"data: {error}") from error


class Loader:
    """Iterator over batches, dicts of NumPy arrays with this process's rows.

    Attributes:
      skipped: Dict of the examples skipped so far: where they are -> what is wrong.
      shortened: Dict of those that miss a part: where they are -> what was left out.
      cut: Counter of the examples so far of which an input was cut off, by batch key.
      order: Index of the example at each position of the endless stream; None in an
        evaluation.
    """

    def __init__(
        self,
        source: Any,
        options: LoaderOptions,
        inputs: Mapping[str, Input] | None = None,
        *,
        batch_size: int,
        seed: int = 0,
        start_step: int = 0,
        train: bool = True,
        rows: Sequence[int] | None = None,
    ) -> None:
        """Starts to load.

        In training the batches go on for ever, epoch after epoch; a data set smaller
        than a batch is repeated within it. In evaluation there is one pass in order,
        cropped at the centre; the last batch is filled up, and "mask" says which rows
        count.

        An example that cannot be decoded is named in the log and replaced by another,
        which depends on its index alone (in evaluation its mask is False).

        Args:
          source: Opened source; see `sources.py`.
          options: How to load.
          inputs: Dict of batch key -> Input, what is made of each example; without any
            it is passed on as the source and `transforms.transform` give it.
          batch_size: Global batch size.
          seed: Seed of the order, the crops and the mirroring.
          start_step: First step in training.
          train: Training, or one pass in order.
          rows: Rows of each global batch that this process loads, see
            `sharding.own_rows`; None for all.

        Raises:
          ValueError: If an argument is out of range.
        """
        require_whole("batch_size", batch_size, 1)
        require_whole("start_step", start_step, 0)
        options = options if train else options.held_out()
        for key, make in (inputs or {}).items():
            for side in _sides(options):
                make.check_size(side)
            if make.rgb_alone and not options.pixels.is_rgb:
                raise ValueError(
                    f"inputs.{key} is made of RGB of 8 bits alone, and data.channels="
                    f"{options.pixels.channels or 'rgb'} are {options.pixels.dtype}: "
                    "take another input"
                )
        count = len(source)
        rows = range(batch_size) if rows is None else [int(row) for row in rows]
        order = _make_order(source, options, seed, batch_size) if train else None
        self.order = order
        last = 2**40 if train else -(-count // batch_size)
        load = LoadBatch(
            source,
            order,
            options,
            inputs,
            seed=seed,
            batch_size=batch_size,
            rows=rows,
        )
        # An input is a map of four floats per pixel at most.
        pixels = max([options.image_size, *_tiers(options)]) ** 2
        each = options.pixels.count * options.pixels.dtype.itemsize
        batch_bytes = len(rows) * pixels * (each + 16 * len(inputs or ()))
        # Reading what is encoded is less work than handing it over.
        workers = 0 if load.encoded else options.workers
        self._start = functools.partial(
            _start,
            load,
            last=last,
            workers=workers,
            threads=_threads(source, workers),
            batch_bytes=batch_bytes,
        )
        self._step = self._first = start_step if train else 0
        self._restarts = options.restart_workers
        self.skipped, self.shortened, self._workers = {}, {}, workers
        self.cut = collections.Counter()
        # Grain's iterator must be gone, not only closed, before the interpreter goes,
        # or it prints tracebacks: the closer, which also runs at exit, drops it.
        self._running = [self._start(self._step)]
        self._closer = weakref.finalize(
            self, _close, self._running, self.skipped, count
        )

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> dict[str, Shaped[np.ndarray, "..."]]:
        """Returns the next batch.

        Returns:
          Dict of "image" [b, S, S, C], by default uint8 of 3 channels, "label" int32
          [b] where the source has classes, the inputs, and in evaluation "mask" bool
          [b]. Without inputs there are the further keys of the source as
          `transforms.transform` makes them, strings as arrays of objects.

        Raises:
          StopIteration: After the last batch of an evaluation, or after `close`.
          DataError: If `on_error` is "raise" and an example cannot be decoded, or if
            too many in a row cannot.
          Unreachable: If what the examples lie on does not answer.
          ProcessLost: If a worker process has gone, and `restart_workers` are used up,
            or it could not start, as of a script without a guard of its main part.
        """
        if not self._closer.alive:
            raise StopIteration
        batch = self._next()
        for where, reason in batch.pop("failures"):
            if where not in self.skipped:
                self.skipped[where] = reason
                count = len(self.skipped)
                logging.warning("skipped %s: %s (%d so far)", where, reason, count)
        for where, what in batch.pop("notes"):
            if where is None:
                self._count_cut(what)
            elif where not in self.shortened:
                self.shortened[where] = what
                logging.warning("%s: %s (%d so far)", where, what, len(self.shortened))
        error, silent = batch.pop("error", None), batch.pop("unreachable", False)
        if error:
            self.close()
            raise (Unreachable if silent else DataError)(error)
        if not self._workers:
            return batch
        # Copied out of the workers' shared memory, which must not outlive them.
        return {key: np.array(value) for key, value in batch.items()}

    def _count_cut(self, key):
        if not self.cut[key]:
            logging.warning(
                'of some examples only the beginning of "%s" is kept, as they have '
                "more tokens than max_length; the log counts them",
                key,
            )
        self.cut[key] += 1

    def _next(self):
        """The batch of the next step, from new workers where one has gone."""
        while True:
            try:
                batch = next(self._running[0])
            except RuntimeError as error:
                # Grain's error of a worker has no kind of its own.
                ended = re.search(r"terminated unexpectedly.* code (-?\d+)", str(error))
                if not ended:
                    raise
                self._restart(int(ended[1]))
            else:
                self._step += 1
                return batch

    def _restart(self, code):
        """Starts the workers anew, from the next step on: a batch depends on no other.

        Raises:
          ProcessLost: If that was done often enough, or cannot help.
        """
        cause = _cause(code)
        if code == 1 and self._step == self._first:
            # It failed as it started, which the next one would, too.
            self.close()
            raise ProcessLost(
                f"a data worker {cause} before its first batch, for the reason that "
                "stands above: workers import the main script anew, so what it runs "
                'must be below `if __name__ == "__main__":`; or set data.workers=0'
            )
        if not self._restarts:
            self.close()
            raise ProcessLost(
                f"a data worker {cause}; lower data.workers ({self._workers} now), or "
                "set data.restart_workers, how often workers are started anew"
            )
        self._restarts -= 1
        logging.warning(
            "a data worker %s; the workers are started anew and go on with the same "
            "batches (%d more times)",
            cause,
            self._restarts,
        )
        self._running.pop().close()
        self._running.append(self._start(self._step))

    def close(self) -> None:
        """Ends the threads and worker processes; says how many were skipped."""
        self._closer()


def _make_order(source, options, seed, batch_size):
    """Example index by position in the endless stream of training."""
    make = getattr(source, "make_order", None)
    order = make(seed) if make else None
    if options.buckets:
        return _in_buckets(source, order, options.buckets, seed, batch_size)
    if order is not None:
        return order
    import grain

    # Grain's seeds have 32 bits.
    order = grain.MapDataset.range(len(source)).seed(to_32_bits(seed))
    return order.shuffle().repeat()


def _in_buckets(source, order, options, seed, batch_size):
    if getattr(source, "encoded", False):
        raise ValueError(
            "buckets are of images, and this source has latents: leave data.buckets out"
        )
    if not hasattr(source, "sizes"):
        raise ValueError(
            "buckets need the sizes of all images, which this source does not know: "
            "take another source, or leave data.buckets out"
        )
    order = order or Shuffled(len(source), seed)
    return BucketOrder(order, assign(source.sizes(), options), batch_size)


def _tiers(options):
    return options.buckets.sizes if options.buckets else ()


def _sides(options):
    """The sides that images may have."""
    if not options.buckets:
        return [options.image_size]
    return sorted({int(side) for side in bucket_shapes(options.buckets).ravel()})


def _threads(source, workers):
    """Threads that load, in each worker or in this process."""
    if not workers or getattr(source, "remote", False):
        return THREADS
    # Threads that decode hold one another up where there are more than cores.
    return min(THREADS, -(-_cores() // workers))


def _cores():
    """Cores that this process may use; other systems do not say which."""
    own = getattr(os, "sched_getaffinity", None)
    return len(own(0)) if own else os.cpu_count() or 1


def _start(load, step, last, workers, threads, batch_bytes):
    """Iterates over the batches from a step on."""
    import grain

    steps = grain.MapDataset.range(step, last).map(load)
    batches = steps.to_iter_dataset(
        grain.ReadOptions(num_threads=threads, prefetch_buffer_size=AHEAD)
    )
    if workers:
        batches = _in_workers(batches, workers, batch_bytes)
    return iter(batches)


def _cause(code):
    """Says how a worker ended."""
    if code >= 0:
        return f"ended with status {code}"
    names = {number.value: number.name for number in signal.Signals}
    causes = {
        signal.SIGKILL: ", as the system does where memory runs out",
        signal.SIGBUS: ", as where /dev/shm is full",
    }
    name = names.get(-code, f"signal {-code}")
    return f"was killed by {name}{causes.get(-code, '')}"


def _close(running, skipped, count):
    # Where new workers could not be started there is nothing to close.
    while running:
        running.pop().close()
    if skipped:
        logging.warning(
            "skipped %d of %d examples that cannot be read", len(skipped), count
        )


def _in_workers(batches, workers, batch_bytes):
    """Moves the work into processes that hand batches over in shared memory."""
    import grain

    # Grain's workers read absl's flags, which a notebook or a test has not parsed.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    batches = batches.mp_prefetch(
        grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2),
        worker_init_fn=_start_worker,
    )
    # Containers often have 64 MB of it, and a worker that fills it up dies of a bus
    # error: then pipes must do, which cost the main process three times the work.
    if _free_shared_memory() > 5 * workers * batch_bytes:
        return batches
    options = grain.experimental.DatasetOptions(min_shm_size=2**62)
    return grain.experimental.WithOptionsIterDataset(batches, options)


def _free_shared_memory():
    try:
        return shutil.disk_usage("/dev/shm").free
    except OSError:
        # Other systems keep it elsewhere and do not limit it so.
        return 2**62


def _start_worker(index, count):
    """Leaves signals to the main process, and goes when that has gone.

    Ctrl-C and a scheduler's SIGTERM reach every process; the main one may still need
    batches to finish its step and save. Killed itself, it cannot stop its workers.
    """
    del index, count
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)
