"""Batches loaded ahead by Grain, in threads or in worker processes.

The batch of a step is a function of the step alone, `load`, so workers that have gone
are started anew at the step that is due, and nobody who takes the batches sees it.
"""

import functools
import multiprocessing
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable
from typing import Any

from absl import flags, logging

from ldm_jax.errors import ProcessLost

# Steps that are loaded ahead, and the threads that do it, in a process that loads.
AHEAD, THREADS = 4, 4


class BatchIterator:
    """Iterator over the batches of steps, in their order."""

    def __init__(
        self,
        load: Callable[[int], dict[str, Any]],
        first: int,
        last: int,
        *,
        workers: int,
        threads: int,
        batch_bytes: int,
        restarts: int,
    ) -> None:
        """Starts to load.

        Args:
          load: Step -> batch; with workers it is pickled.
          first: First step.
          last: Step before which it ends.
          workers: Worker processes; 0 loads in threads of this one.
          threads: Threads that load in each of them, see `threads_in_each`.
          batch_bytes: Bytes of a batch, at most.
          restarts: How often workers are started anew where one was killed.
        """
        self._start = functools.partial(
            _start,
            load,
            last=last,
            workers=workers,
            threads=threads,
            batch_bytes=batch_bytes,
        )
        self._step = self._first = first
        self._workers, self._restarts = workers, restarts
        self._running = self._start(first)

    def __iter__(self) -> "BatchIterator":
        return self

    def __next__(self) -> dict[str, Any]:
        """Returns the batch of the next step, from new workers where one has gone.

        Returns:
          What `load` gives; of workers, arrays lie in their shared memory.

        Raises:
          StopIteration: After the last step.
          ProcessLost: If a worker has gone and cannot be replaced.
        """
        while True:
            try:
                batch = next(self._running)
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
            raise ProcessLost(
                f"a data worker {cause} before its first batch, for the reason that "
                "stands above: workers import the main script anew, so what it runs "
                'must be below `if __name__ == "__main__":`; or set data.workers=0'
            )
        if not self._restarts:
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
        self.close()
        self._running = self._start(self._step)

    def close(self) -> None:
        """Ends the threads and worker processes."""
        # Grain's iterator must be gone, not only closed, before the interpreter goes,
        # or it prints tracebacks. There is none where new workers could not start.
        running, self._running = self._running, None
        if running is not None:
            running.close()


def threads_in_each(source: Any, workers: int) -> int:
    """Says how many threads load, in each worker or in this process.

    Args:
      source: Opened source.
      workers: Worker processes; 0 loads in threads of this one.

    Returns:
      Number of threads.
    """
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
