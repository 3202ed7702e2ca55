"""Batches loaded ahead by Grain, in threads or in worker processes.

The batch of a step is a function of the step alone, `load`, so workers that died are
restarted at the next step, and the batches are the same.
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

# Steps that are loaded ahead, and the threads that load them, in each loading process.
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
        """Starts loading.

        Args:
          load: Step -> batch; with workers it is pickled.
          first: First step.
          last: Step at which to stop, exclusive.
          workers: Worker processes; 0 loads in threads of this one.
          threads: Threads that load in each of them, see `threads_in_each`.
          batch_bytes: Upper bound on the bytes of a batch.
          restarts: How often workers are restarted after one was killed.
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
        """Returns the batch of the next step, restarting the workers if one died.

        Returns:
          Result of `load`; with workers, its arrays are in their shared memory.

        Raises:
          StopIteration: After the last step.
          ProcessLost: If a worker died and cannot be replaced.
        """
        while True:
            try:
                batch = next(self._running)
            except RuntimeError as error:
                # Grain has no error class of its own for a lost worker.
                ended = re.search(r"terminated unexpectedly.* code (-?\d+)", str(error))
                if not ended:
                    raise
                self._restart(int(ended[1]))
            else:
                self._step += 1
                return batch

    def _restart(self, code):
        """Restarts the workers at the next step: batches do not depend on each other.

        Raises:
          ProcessLost: If no restarts are left, or a restart cannot help.
        """
        cause = _cause(code)
        if code == 1 and self._step == self._first:
            # It failed at its start, and so would the next one.
            raise ProcessLost(
                f"a data worker {cause} before its first batch, for the reason that "
                "stands above: workers import the main script again, so what it runs "
                'must be below `if __name__ == "__main__":`; or set data.workers=0'
            )
        if not self._restarts:
            raise ProcessLost(
                f"a data worker {cause}; lower data.workers ({self._workers} now), or "
                "set data.restart_workers, how often workers are restarted"
            )
        self._restarts -= 1
        logging.warning(
            "a data worker %s; the workers are restarted and continue with the same "
            "batches (%d more times)",
            cause,
            self._restarts,
        )
        self.close()
        self._running = self._start(self._step)

    def close(self) -> None:
        """Stops the threads and worker processes."""
        # Grain's iterator must be deleted, not only closed, before the interpreter
        # exits, or it prints tracebacks. It is None if new workers could not start.
        running, self._running = self._running, None
        if running is not None:
            running.close()


def threads_in_each(source: Any, workers: int) -> int:
    """Returns the number of loading threads in each worker, or in this process.

    Args:
      source: Opened source.
      workers: Worker processes; 0 loads in threads of this one.

    Returns:
      Number of threads.
    """
    if not workers or getattr(source, "remote", False):
        return THREADS
    # Decoding threads slow one another down if there are more of them than cores.
    return min(THREADS, -(-_cores() // workers))


def _cores():
    """Cores that this process may use; all cores on systems that do not report them."""
    own = getattr(os, "sched_getaffinity", None)
    return len(own(0)) if own else os.cpu_count() or 1


def _start(load, step, last, workers, threads, batch_bytes):
    """Starts an iterator over the batches from a step on."""
    import grain

    steps = grain.MapDataset.range(step, last).map(load)
    batches = steps.to_iter_dataset(
        grain.ReadOptions(num_threads=threads, prefetch_buffer_size=AHEAD)
    )
    if workers:
        batches = _in_workers(batches, workers, batch_bytes)
    return iter(batches)


def _in_workers(batches, workers, batch_bytes):
    """Moves the loading into processes that pass batches in shared memory."""
    import grain

    # Grain's workers read absl's flags, which a notebook or a test has not parsed.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    batches = batches.mp_prefetch(
        grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2),
        worker_init_fn=_start_worker,
    )
    # Containers often have only 64 MB of it, and a worker that fills it up dies of a
    # bus error: then pipes are used, which cost the main process three times the work.
    if _free_shared_memory() > 5 * workers * batch_bytes:
        return batches
    options = grain.experimental.DatasetOptions(min_shm_size=2**62)
    return grain.experimental.WithOptionsIterDataset(batches, options)


def _free_shared_memory():
    try:
        return shutil.disk_usage("/dev/shm").free
    except OSError:
        # Other systems keep it elsewhere, without such a limit.
        return 2**62


def _start_worker(index, count):
    """Ignores signals, and exits when the main process has ended.

    Ctrl-C and a scheduler's SIGTERM reach every process; the main one may still need
    batches to finish its step and save. If it is killed, it cannot stop its workers.
    """
    del index, count
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)


def _cause(code):
    """Describes how a worker ended."""
    if code >= 0:
        return f"ended with status {code}"
    names = {number.value: number.name for number in signal.Signals}
    causes = {
        signal.SIGKILL: ", as the system does where memory runs out",
        signal.SIGBUS: ", as where /dev/shm is full",
    }
    name = names.get(-code, f"signal {-code}")
    return f"was killed by {name}{causes.get(-code, '')}"
