"""One run at a time in a folder: who works in it stands in its file `in_use.json`.

A run that was killed leaves the file behind. On the same host, in the same container,
the holder's process is looked for: its number and the time at which it began, since
numbers are given anew. From elsewhere only signs of life are seen: the holder touches
the file every few seconds, and one that has not for a minute is taken for dead. One
that only stood still, as on a host that was paused, looks before it writes on. In an
object store the file is made and renewed as `store.claim` says.
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

# Seconds between signs of life, and without one until a holder counts as dead.
BEAT, DEAD = 10.0, 60.0


@contextlib.contextmanager
def hold(
    folder: str | os.PathLike, override: bool = False, flag: str = "take_workdir"
) -> Iterator[None]:
    """Keeps other runs out of a folder while the block runs.

    Args:
      folder: The folder, made if need be.
      override: Take it from a holder of whom it cannot be seen whether it runs.
      flag: Flag of the command that says so, for the message.

    Yields:
      Nothing.

    Raises:
      WorkdirInUse: If another process works in it.
      DiskError: If nothing can be written to it.
    """
    path = as_path(folder).absolute() / FILE
    held = (_InStore if is_remote(path) else _OnDisk)(path, Holder.here())
    with writing(path):
        _take(held, path.parent, override, flag)
    keeper = _Keeper(held, path.parent)
    _keepers.append(keeper)
    try:
        yield
    finally:
        _keepers.remove(keeper)
        keeper.release()


@contextlib.contextmanager
def hold_outdir(folder: str | os.PathLike, override: bool = False) -> Iterator[None]:
    """Keeps other commands out of a folder of output; every process must call it.

    The first process of the job holds it, and no process goes on before that is so.

    Args:
      folder: The folder, made if need be.
      override: As of `hold`, for --take_outdir.

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
    """Ends this process if another has taken a folder from it meanwhile.

    To be called before something is written. It looks only where this process has given
    no sign of life for so long that another may have taken it for dead.
    """
    for keeper in _keepers:
        keeper.require()


def _take(held, folder, override, flag):
    """Takes the folder, unless somebody else holds it."""
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
        # It is elsewhere: the next sign of life, or none in time, will tell.
        if waited not in (None, seen):
            raise WorkdirInUse(
                f"{folder} is in use by {holder}, which gives signs of life; wait for "
                "it or end it, or give another folder. Only if it is gone for certain: "
                f"--{flag}"
            )
        if waited is None:
            print(
                f"note: {folder} is held by {holder}; waiting up to {DEAD:.0f} s for "
                "a sign of life",
                flush=True,
            )
        waited = seen
        time.sleep(min(1.0, BEAT / 10))


def _lives(holder, silence, override):
    """Whether a holder must be taken for alive; `silence()` gives seconds."""
    if holder is None:
        return False
    runs = holder.runs()
    lives = runs if runs is not None else not override and silence() < DEAD
    if not lives:
        end = "has ended" if runs is False else "is taken for dead"
        print(f"note: the last run, {holder}, {end}", flush=True)
    return lives


class _Keeper:
    """Gives signs of life for a folder that is held."""

    def __init__(self, held, folder):
        self._held, self._folder = held, folder
        self._ended, self._looked = threading.Event(), time.time()
        threading.Thread(target=self._beat, daemon=True).start()

    def require(self):
        """Looks, if the last sign of life was long ago by the clock on the wall."""
        if abs(time.time() - self._looked) > DEAD / 2:
            self._look()

    def release(self):
        """Gives the folder back."""
        self._ended.set()
        self._held.release()

    def _beat(self):
        while not self._ended.wait(BEAT):
            self._look()

    def _look(self):
        """Gives a sign of life; ends the process where another has the folder."""
        # What a disk or a store refuses now it may not the next time.
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


# Those of the folders that this process holds.
_keepers: list[_Keeper] = []


def _parse(record):
    """The holder that a record names; None for none, or for what was cut by a kill."""
    try:
        return Holder(**record)
    except TypeError:
        return None


class _Watched:
    """For how long no other sign of life was seen, by this host's own clock.

    The clocks of two hosts may be minutes apart, and many file systems write down that
    of the host that touches a file.
    """

    def __init__(self):
        self._seen, self._since = None, 0.0

    def _note(self, sign):
        """Notes the sign of life that is there now."""
        if sign != self._seen:
            self._seen, self._since = sign, time.monotonic()

    def _silence(self):
        """Seconds since the sign that was noted last was first seen."""
        return time.monotonic() - self._since


class _OnDisk(_Watched):
    """The file on a disk, which the system locks while it is read and written."""

    def __init__(self, path, me):
        super().__init__()
        self._path, self._me = path, me

    def attempt(self, override):
        """(None, None) once it is taken, else who holds it and a sign of its life."""
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
        """Gives a sign of life; returns who has taken the folder, if somebody has."""
        with open(self._path, "rb") as file:
            holder = _read(file)
        if holder not in (self._me, None):
            return holder
        os.utime(self._path)
        return None

    def release(self):
        """Removes the file, if it is still this process's own."""
        with contextlib.suppress(OSError), self._guarded() as file:
            if _read(file) in (self._me, None):
                self._path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _guarded(self):
        """Opens the file, made if need be, so that one process at a time has it.

        Where a file system knows no locks, two that start in the same instant are not
        seen.
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
    """The holder that a file names; None for none, or for a file cut by a kill."""
    file.seek(0)
    try:
        return _parse(json.loads(file.read()))
    except ValueError:
        return None


def _record(holder):
    return json.dumps(dataclasses.asdict(holder), indent=2).encode() + b"\n"


class _InStore(_Watched):
    """The object in a store, which one process alone can make."""

    def __init__(self, path, me):
        super().__init__()
        self._claim = Claim(path, dataclasses.asdict(me))

    def attempt(self, override):
        """(None, None) once it is taken, else who holds it and a sign of its life."""
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
        """Gives a sign of life; returns who has taken the folder, if somebody has."""
        found = self._claim.read()
        if found is not None and not self._claim.is_mine():
            return _in_store(found)
        self._claim.beat()
        return None

    def release(self):
        """Removes the object, if it is still this process's own."""
        # In time it is taken for that of a dead run.
        with contextlib.suppress(Exception):
            self._claim.release()


def _in_store(record):
    marks = ("token", "number")
    return _parse({key: record[key] for key in record if key not in marks})
