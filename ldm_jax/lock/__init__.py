"""Locks a folder for one run at a time, with the file `in_use.json` of its holder.

A run that was killed leaves the file behind. On the same host, in the same container,
the holder's process is looked up: its id and its start time, since ids are reused. From
elsewhere only heartbeats are visible: the holder touches the file every few seconds,
and one that has not for a minute is considered dead. One that was only suspended, e.g.
on a host that was paused, checks the file before it writes again. In an object store
the file is created and updated as described in `store.claim`.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import sys
import threading
import time
from collections.abc import Iterator

from ldm_jax import peers
from ldm_jax.errors import WorkdirInUse
from ldm_jax.files import writing
from ldm_jax.lock.holder import Holder
from ldm_jax.store import Claim, as_path, is_remote

FILE = "in_use.json"

# Seconds between heartbeats, and without one until a holder is considered dead.
BEAT, DEAD = 10.0, 60.0


@contextlib.contextmanager
def hold(
    folder: str | os.PathLike, override: bool = False, flag: str = "take_workdir"
) -> Iterator[None]:
    """Locks a folder against other runs while the block runs.

    Args:
      folder: The folder, created if needed.
      override: Whether to take it from a holder if it is unknown whether that runs.
      flag: Flag of the command that sets `override`, for the message.

    Yields:
      Nothing.

    Raises:
      WorkdirInUse: If another process holds it.
      DiskError: If it cannot be written to.
    """
    path = as_path(folder).absolute() / FILE
    held = (_InStore if is_remote(path) else _OnDisk)(path, Holder.here())
    with writing(path):
        _take(held, path.parent, override, flag)
    keeper = _Keeper(held, path.parent)
    _keepers.append(keeper)
    try:
        # Else a job that is restarted elsewhere would wait for this one's heartbeat.
        with peers.leaving(keeper.release):
            yield
    finally:
        _keepers.remove(keeper)
        keeper.release()


@contextlib.contextmanager
def hold_outdir(folder: str | os.PathLike, override: bool = False) -> Iterator[None]:
    """Locks an output folder against other commands; every process must call it.

    Process 0 of the job holds the lock, and no process continues before that.

    Args:
      folder: The folder, created if needed.
      override: As in `hold`, for --take_outdir.

    Yields:
      Nothing.

    Raises:
      WorkdirInUse: If another command works in it.
      DiskError: If nothing can be written to it.
    """
    import jax

    with contextlib.ExitStack() as stack:
        if not jax.process_index():
            stack.enter_context(hold(folder, override, "take_outdir"))
        peers.gather("held")
        yield


def require_held() -> None:
    """Ends this process if another has taken a folder from it in the meantime.

    Call it before writing. It checks only if the last heartbeat of this process was so
    long ago that another may have considered it dead.
    """
    for keeper in _keepers:
        keeper.require()


def _take(held, folder, override, flag):
    """Takes the folder, unless another process holds it."""
    waited = None
    while True:
        holder, seen = held.attempt(override)
        if holder is None:
            return
        if holder.runs():
            raise WorkdirInUse(
                f"{folder} is in use by {holder}; wait for it or end it, or give "
                "another folder"
            )
        # The holder is elsewhere: wait for its next heartbeat, or for none in time.
        if waited not in (None, seen):
            raise WorkdirInUse(
                f"{folder} is in use by {holder}, which still sends heartbeats; "
                "wait for it or end it, or give another folder. Only if it has "
                f"certainly ended: --{flag}"
            )
        if waited is None:
            print(
                f"note: {folder} is held by {holder}; waiting up to {DEAD:.0f} s for "
                "a heartbeat",
                flush=True,
            )
        waited = seen
        time.sleep(min(1.0, BEAT / 10))


def _lives(holder, silence, override):
    """Whether to assume that a holder is alive; `silence()` returns seconds."""
    if holder is None:
        return False
    runs = holder.runs()
    lives = runs if runs is not None else not override and silence() < DEAD
    if not lives:
        end = "has ended" if runs is False else "is taken for dead"
        print(f"note: the last run, {holder}, {end}", flush=True)
    return lives


class _Keeper:
    """Sends heartbeats for a folder that this process holds."""

    def __init__(self, held, folder):
        self._held, self._folder = held, folder
        self._ended, self._looked = threading.Event(), time.time()
        threading.Thread(target=self._beat, daemon=True).start()

    def require(self):
        """Checks the holder, if the last heartbeat was long ago in wall-clock time."""
        if abs(time.time() - self._looked) > DEAD / 2:
            self._look()

    def release(self):
        """Releases the folder."""
        self._ended.set()
        self._held.release()

    def _beat(self):
        while not self._ended.wait(BEAT):
            self._look()

    def _look(self):
        """Sends a heartbeat; ends the process if another holds the folder."""
        # An error of a disk or a store may be transient: the next heartbeat retries.
        with contextlib.suppress(Exception):
            holder = self._held.beat()
            self._looked = time.time()
            if holder is not None and not self._ended.is_set():
                sys.stdout.flush()
                print(
                    f"error: {self._folder} was taken by {holder}; this process ends, "
                    "so that no two write to it",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(WorkdirInUse.exit_code)


# Keepers of the folders that this process holds.
_keepers: list[_Keeper] = []


def _parse(record):
    """The holder in a record; None if there is none, or if a kill truncated it."""
    try:
        return Holder(**record)
    except TypeError:
        return None


class _Watched:
    """Time without a new heartbeat, by the clock of this host.

    The clocks of two hosts may be minutes apart, and many file systems store the time
    of the host that touches a file.
    """

    def __init__(self):
        self._seen, self._since = None, 0.0

    def _note(self, sign):
        """Records the current heartbeat."""
        if sign != self._seen:
            self._seen, self._since = sign, time.monotonic()

    def _silence(self):
        """Seconds since the last recorded heartbeat was first seen."""
        return time.monotonic() - self._since


class _OnDisk(_Watched):
    """The file on a disk, with a system lock while it is read and written."""

    def __init__(self, path, me):
        super().__init__()
        self._path, self._me = path, me

    def attempt(self, override):
        """Tries to take it: (None, None), or else the holder and its last heartbeat."""
        path = self._path
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._guarded() as file:
            holder, sign = _read(file), os.fstat(file.fileno()).st_mtime_ns
            self._note(sign)
            if _lives(holder, self._silence, override):
                return holder, sign
            file.seek(0)
            file.truncate()
            file.write(_record(self._me))
            file.flush()
            return None, None

    def beat(self):
        """Sends a heartbeat, or returns the process that has taken the folder."""
        with open(self._path, "rb") as file:
            holder = _read(file)
        if holder not in (self._me, None):
            return holder
        os.utime(self._path)
        return None

    def release(self):
        """Removes the file, if this process still holds it."""
        with contextlib.suppress(OSError), self._guarded() as file:
            if _read(file) in (self._me, None):
                self._path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _guarded(self):
        """Opens the file, created if needed, for one process at a time.

        On a file system without locks, two processes that start at the same instant are
        not detected.
        """
        path = self._path
        while True:
            with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
                with contextlib.suppress(OSError):
                    fcntl.flock(file, fcntl.LOCK_EX)
                # Another may have removed the file in between.
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                        yield file
                        return


def _read(file):
    """The holder in a file; None if there is none, or if a kill truncated the file."""
    file.seek(0)
    try:
        return _parse(json.loads(file.read()))
    except ValueError:
        return None


def _record(holder):
    return json.dumps(dataclasses.asdict(holder), indent=2).encode() + b"\n"


class _InStore(_Watched):
    """The object in a store, which only one process can create."""

    def __init__(self, path, me):
        super().__init__()
        self._claim = Claim(path, dataclasses.asdict(me))

    def attempt(self, override):
        """Tries to take it: (None, None), or else the holder and its last heartbeat."""
        while not self._claim.make():
            found = self._claim.read()
            if found is None:
                continue
            self._note(found)
            holder = _in_store(found)
            if _lives(holder, self._silence, override):
                return holder, found["number"]
            if self._claim.replace(found):
                break
        return None, None

    def beat(self):
        """Sends a heartbeat, or returns the process that has taken the folder."""
        found = self._claim.read()
        if found is not None and not self._claim.is_mine():
            return _in_store(found)
        self._claim.beat()
        return None

    def release(self):
        """Removes the object, if this process still holds it."""
        # If that fails, the run is considered dead after a while.
        with contextlib.suppress(Exception):
            self._claim.release()


def _in_store(record):
    marks = ("token", "number")
    return _parse({key: record[key] for key in record if key not in marks})
