"""Failure handling across the processes of a job: if one fails, the others exit, too.

A thread of each process talks to the key-value store of JAX's coordination service,
which runs in process 0. Each process reports heartbeats and its progress there; process
0 checks that all do. A process that fails reports the reason before it exits; the
others read it while they wait in a collective, print it and exit with the same exit
code. If the network is down, calls of the service block forever: a second thread
measures for how long the service has not answered.

In a job of one process, all of this does nothing.
"""

import atexit
import contextlib
import ctypes
import faulthandler
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from ldm_jax.errors import ProcessLost

# Seconds between heartbeats, and without one until a process counts as lost. A process
# whose interpreter is blocked for longer counts as lost, too.
BEAT, SILENT = 2.0, 20.0

# Seconds to finish a running save, and for the others to read why a process exits.
_SAVE, _READ = 20.0, 5.0

# Milliseconds that processes wait for one that is long at work.
_DAY = 86_400_000

_FAILED, _ALIVE, _SEEN = "ldm_jax/failed", "ldm_jax/alive/", "ldm_jax/seen/"

# In messages of errors that another process's exit causes.
_LOST = re.compile(
    r"gloo|nccl|UNAVAILABLE|connection (closed|reset|refused)|socket closed"
    r"|heartbeat|unhealthy|DEADLINE_EXCEEDED|barrier timed out",
    re.IGNORECASE,
)


# Functions to call before this process exits at once; see `leaving`.
_leaving: list[Callable[[], None]] = []


class Peers:
    """Watches the other processes of a job, from within one of them."""

    def __init__(
        self,
        client: Any,
        index: int,
        count: int,
        hang_timeout: float = 0.0,
        leave: Callable[[int], Any] = os._exit,
    ) -> None:
        """Starts watching.

        Args:
          client: The coordination service's client.
          index: Index of this process.
          count: Number of processes.
          hang_timeout: Seconds without progress of any process after which the job is
            aborted, from start to end; 0 for never.
          leave: Function of an exit code that ends this process.
        """
        self._client, self._index, self._count = client, index, count
        self._hang_timeout, self._leave = hang_timeout, leave
        self._step, self._moves, self._beats, self._meetings = None, 0, 0, 0
        self._saving: Callable[[], None] | None = None
        # The exit code with which this process is about to exit.
        self._status: int | None = None
        # By process: the last heartbeat and its time; then the last progress and its
        # time.
        self._signs, self._progress = {}, (None, time.monotonic())
        self._answers, self._ended = 0, threading.Event()
        self._ending, self._failing = threading.Lock(), threading.Lock()
        self._threads = [threading.Thread(target=self._talk, daemon=True)]
        if index:
            watch = threading.Thread(target=self._watch_service, daemon=True)
            self._threads.append(watch)
        for thread in self._threads:
            thread.start()

    def progress(self, step: int | None) -> None:
        """Records that this process makes progress.

        Args:
          step: Number of steps done, or None if it is unchanged.
        """
        self._step = self._step if step is None else step
        self._moves += 1

    @contextlib.contextmanager
    def saving(self, wait: Callable[[], None]) -> Iterator[None]:
        """Lets a running save finish before this process exits for another's failure.

        Args:
          wait: Function that blocks until it is saved.

        Yields:
          Nothing.
        """
        self._saving = wait
        try:
            yield
        finally:
            self._saving = None

    def meet(self) -> None:
        """Waits until all processes have come here, however long one of them takes."""
        self._meetings += 1
        self._client.wait_at_barrier(f"ldm_jax/met/{self._meetings}", _DAY)

    def await_cause(self, text: str) -> None:
        """Waits for the cause if an error may be due to another process's exit.

        If it is, the cause arrives soon and ends this process.

        Args:
          text: The error in this process.
        """
        if _LOST.search(text):
            self._ended.wait(SILENT + 3 * BEAT)
        if self._ended.is_set():
            for thread in self._threads:
                thread.join()
        # Another thread may be in `fail`: the error then is due to that.
        with self._failing:
            pass

    def fail(self, text: str, status: int) -> None:
        """Reports to the other processes why this one fails, and exits.

        Args:
          text: What went wrong, in one line.
          status: Exit code, for all of them.
        """
        with self._failing:
            # Before the report, or this process's own thread would react to it, too.
            self._ended.set()
            self._status = status
            _within(_READ, self._report, self._index, text, status)
            self._let_others_read(self._index)
            self._leave(status)

    def abort(self) -> None:
        """Exits when JAX aborts this process, as it does if process 0 is gone."""
        if self._status is None:
            _say(
                "error: JAX has ended this process (see above), as a rule because "
                "process 0 of the job or the way to it has gone; the same command "
                "continues from what was saved"
            )
            self._status = ProcessLost.exit_code
        self._leave(self._status)

    def finish(self) -> None:
        """Waits until all processes are done, then stops watching."""
        # The wait may be interrupted by the failure of another process.
        with contextlib.suppress(Exception):
            self._client.wait_at_barrier("ldm_jax/end", _DAY)
        self.stop()

    def stop(self) -> None:
        """Stops watching; a thread must not outlive the interpreter."""
        self._ended.set()
        # Wakes up the threads of all processes: from now on nothing can fail.
        _within(_READ, self._set, _FAILED, None)
        for thread in self._threads:
            thread.join(2 * BEAT)

    def _talk(self):
        while not self._ended.is_set():
            try:
                self._give_sign()
                if self._index == 0:
                    self._judge()
                found = self._client.blocking_key_value_get(_FAILED, int(BEAT * 1000))
            except Exception as error:  # JAX raises one type for all errors.
                # DEADLINE_EXCEEDED means that no process has failed yet.
                if "DEADLINE_EXCEEDED" not in str(error):
                    self._ended.wait(BEAT)
                continue
            failure = json.loads(found)
            if failure is None:
                # All are done; that process 0 no longer answers is not an error now.
                self._ended.set()
                return
            self._end_for(failure)

    def _give_sign(self):
        self._beats += 1
        sign = [self._beats, self._moves, self._step, socket.gethostname()]
        self._set(f"{_ALIVE}{self._index}", sign, allow_overwrite=True)
        self._answers += 1

    def _set(self, key, value, allow_overwrite=False):
        self._client.key_value_set(key, json.dumps(value), allow_overwrite)

    def _watch_service(self):
        """Exits if process 0, or the connection to it, is gone."""
        seen, silent = self._answers, 0.0
        while not self._ended.wait(BEAT):
            # Counts its own waits, so time in which this process was blocked does not
            # count.
            silent = silent + BEAT if self._answers == seen else 0.0
            seen = self._answers
            if silent > SILENT:
                self._end_for(
                    {
                        "process": 0,
                        "host": "",
                        "text": f"it has not answered for {SILENT:.0f} s",
                        "status": ProcessLost.exit_code,
                    }
                )

    def _judge(self):
        """In process 0: looks for missing heartbeats, and for a job that hangs."""
        now = time.monotonic()
        for key, value in self._client.key_value_dir_get(_ALIVE):
            index, sign = int(key.rpartition("/")[2]), json.loads(value)
            if sign[0] != self._signs.get(index, ((None,),))[0][0]:
                self._signs[index] = sign, now
        for index in range(self._count):
            sign, seen = self._signs.setdefault(index, ([None, 0, None, ""], now))
            if now - seen > SILENT:
                text = (
                    f"it has sent no heartbeat for {SILENT:.0f} s: it was killed, "
                    "as for want of memory, or its machine has gone"
                )
                self._report(index, text, ProcessLost.exit_code, sign[3])
                return
        moves = {index: sign[1] for index, (sign, _) in self._signs.items()}
        if moves != self._progress[0]:
            self._progress = moves, now
        waited = now - self._progress[1]
        if self._hang_timeout and waited > self._hang_timeout:
            self._report_hang()

    def _report_hang(self):
        steps = {index: sign[2] for index, (sign, _) in self._signs.items()}
        steps = sorted((i, "none yet" if s is None else s) for i, s in steps.items())
        places = ", ".join(f"process {i}: {s}" for i, s in steps)
        text = (
            f"no process has finished a step for {self._hang_timeout:.0f} s "
            f"(--hang_timeout); steps done: {places}"
        )
        self._report(None, text, ProcessLost.exit_code)

    def _report(self, index, text, status, host=None):
        """Reports which process failed, or None; only the first report counts."""
        host = socket.gethostname() if host is None else host
        failure = {"process": index, "host": host, "text": text, "status": status}
        with contextlib.suppress(Exception):
            self._set(_FAILED, failure)

    def _end_for(self, failure):
        """Exits because another process failed; only the first failure is printed."""
        with self._ending:
            if self._ended.is_set():
                return
            self._ended.set()
            self._status = failure["status"]
        host = f" on {failure['host']}" if failure["host"] else ""
        who = f"process {failure['process']} of {self._count}{host} failed: "
        if failure["process"] is None:
            who = ""
        _say(f"error: {who}{failure['text']}")
        # Without process 0 no checkpoint can be completed, and the service is gone.
        if self._saving is not None and failure["process"] != 0:
            _within(_SAVE, self._saving)
        _within(_READ, self._set, f"{_SEEN}{self._index}", True, True)
        self._let_others_read(failure["process"])
        self._leave(failure["status"])

    def _let_others_read(self, failed):
        """Process 0 exits last, as it holds the message that the others read."""
        others = set(range(1, self._count)) - {failed}
        end = time.monotonic() + _READ
        while self._index == 0 and others and time.monotonic() < end:
            with contextlib.suppress(Exception):
                seen = self._client.key_value_dir_get(_SEEN)
                others -= {int(key.rpartition("/")[2]) for key, _ in seen}
            time.sleep(0.05)


def _within(seconds, function, *arguments):
    """Calls a function, ignoring errors; returns after `seconds` even if it runs on."""

    def call():
        with contextlib.suppress(Exception):
            function(*arguments)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)


def _say(line):
    """Prints why this process exits, after all other output; ignores write errors."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def _exit(status):
    """Exits at once, whatever the main thread is doing."""
    for function in tuple(_leaving):
        _within(_READ, function)
    os._exit(status)


_peers: Peers | None = None


_libc = ctypes.CDLL(None)


# JAX aborts if process 0 is gone: its client cannot call Python code instead. A handler
# of the module `signal` would run too late, after abort() has ended the process; this
# one is called from C, and waits for the interpreter.
@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _aborted(number):
    here = threading.get_ident()
    if all(thread.ident != here for thread in threading.enumerate()):
        # A thread of JAX, such as its client's.
        _peers.abort()
        return
    # In a thread of Python it is another kind of failure: print the traceback, as
    # absl's handler would, which this one replaces.
    faulthandler.dump_traceback()
    _libc.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def watch(hang_timeout: float) -> None:
    """Starts to watch the other processes, after `jax.distributed.initialize`.

    Args:
      hang_timeout: See `Peers`.
    """
    from jax._src.distributed import global_state

    global _peers
    if global_state.client is not None and global_state.num_processes > 1:
        _peers = Peers(
            global_state.client,
            global_state.process_id,
            global_state.num_processes,
            hang_timeout,
            _exit,
        )
        if global_state.process_id:
            _libc.signal(signal.SIGABRT, _aborted)
        # However the program ends, and before JAX disconnects from the service.
        atexit.register(_peers.stop)


def progress(step: int | None = None) -> None:
    """Records that this process makes progress.

    Args:
      step: Number of steps done, if it does steps.
    """
    if _peers is not None:
        _peers.progress(step)


def gather(text: str) -> list[str]:
    """Gathers a text from all processes on each; every process must call it.

    Args:
      text: Text of this process; with several processes cut to 1,024 bytes.

    Returns:
      The texts by process.
    """
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return [text]
    if _peers is not None:
        # Gloo, with which CPUs speak, gives its first meeting 30 seconds.
        _peers.meet()
    data = np.frombuffer(text.encode()[:1024].ljust(1024), np.uint8)
    rows = multihost_utils.process_allgather(data)
    return [bytes(row).decode(errors="replace").strip() for row in rows]


def saving(wait: Callable[[], None]) -> contextlib.AbstractContextManager[None]:
    """Lets a running save finish if another process fails.

    Args:
      wait: Function that blocks until it is saved.

    Returns:
      Context manager, within which this applies.
    """
    return contextlib.nullcontext() if _peers is None else _peers.saving(wait)


@contextlib.contextmanager
def leaving(function: Callable[[], None]) -> Iterator[None]:
    """Calls a function also if the failure of a job ends this process within the block.

    A thread then exits at once, so no `finally` of the main thread runs.

    Args:
      function: Function that is called then; it has a few seconds.

    Yields:
      Nothing.
    """
    _leaving.append(function)
    try:
        yield
    finally:
        _leaving.remove(function)


def several() -> bool:
    """Returns whether this process is one of several of a job.

    Returns:
      Whether it is.
    """
    return _peers is not None


def may_be_lost(text: str) -> bool:
    """Returns whether an error may be due to another process's exit.

    Args:
      text: Message of the error.

    Returns:
      Whether it may; always False without other processes.
    """
    return several() and bool(_LOST.search(text))


def await_cause(text: str) -> None:
    """Waits for the cause if an error may be due to another process's exit.

    Args:
      text: The error in this process.
    """
    if _peers is not None:
        _peers.await_cause(text)


def fail(text: str, status: int) -> None:
    """Reports why this process fails and exits, if there are other processes.

    Args:
      text: What went wrong, in one line.
      status: Exit code.
    """
    if _peers is not None:
        _peers.fail(text, status)


def stop(text: str, status: int) -> NoReturn:
    """Ends this process at once, from any thread, and the others of its job.

    Args:
      text: Why, in one line; it is printed.
      status: Exit code of all of them.
    """
    _say(text)
    fail(text, status)
    _exit(status)


def give_up(text: str, status: int) -> None:
    """Ends a job from a thread, while the main thread waits for what never comes.

    Args:
      text: What went wrong, in one line; it is printed.
      status: Exit code of all processes of the job; does nothing without others.
    """
    if _peers is not None:
        _peers.await_cause(text)
        _say(f"error: {text}")
        _peers.fail(text, status)


def finish() -> None:
    """Waits until the other processes are done, if any, and leaves the job."""
    if _peers is not None:
        import jax

        _peers.finish()
        # JAX would do so at the interpreter's exit, where the order of destruction is
        # arbitrary.
        jax.distributed.shutdown()
