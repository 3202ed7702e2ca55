"""One run at a time in a folder: who works in it stands in its file `in_use.json`.

A run that was killed leaves the file behind. On the same host, in the same container,
the holder's process is looked for: its number and the time at which it began, since
numbers are given anew. From elsewhere only signs of life are seen: the holder touches
the file every few seconds, and one that has not for a minute is taken for dead.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from ldm_jax.errors import WorkdirInUse
from ldm_jax.files import writing

FILE = "in_use.json"

# Seconds between signs of life, and without one until a holder counts as dead.
BEAT, DEAD = 10.0, 60.0


@dataclasses.dataclass(frozen=True)
class Holder:
    """A process that works in a folder.

    Attributes:
      host: Name of its machine.
      machine: What tells that machine, since its start, and the container from others.
      process: Number of the process.
      began: When the process began, in the system's own count.
      since: When it took the folder, as people write it.
      command: Its command line.
    """

    host: str
    machine: str
    process: int
    began: str
    since: str
    command: str

    @classmethod
    def here(cls) -> "Holder":
        """Describes this process.

        Returns:
          A Holder.
        """
        return cls(
            socket.gethostname(),
            _machine(),
            os.getpid(),
            _began(os.getpid()) or "",
            time.strftime("%Y-%m-%d %H:%M:%S %z"),
            " ".join(sys.argv)[:500],
        )

    def runs(self) -> bool | None:
        """Says whether the process is there; None where that cannot be seen from here.

        Returns:
          Whether it runs, or None.
        """
        if self.machine != _machine():
            return None
        found = _began(self.process)
        return found is not None and found == self.began


@contextlib.contextmanager
def hold(folder: str | os.PathLike, override: bool = False) -> Iterator[None]:
    """Keeps other runs out of a folder while the block runs.

    Args:
      folder: The folder, made if need be.
      override: Take it from a holder of whom it cannot be seen whether it runs.

    Yields:
      Nothing.

    Raises:
      WorkdirInUse: If another process works in it.
      DiskError: If nothing can be written to it.
    """
    path, me = pathlib.Path(folder).expanduser().absolute() / FILE, Holder.here()
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _take(path, me, override)
    ended = threading.Event()
    beat = threading.Thread(target=_beat, args=(path, me, ended), daemon=True)
    beat.start()
    try:
        yield
    finally:
        ended.set()
        _release(path, me)


def _take(path, me, override):
    """Writes the file, unless somebody else holds it."""
    waited = False
    while True:
        with _guarded(path) as file:
            holder = _read(file)
            if holder is None or not _lives(holder, path, override):
                if holder is not None:
                    end = "has ended" if holder.runs() is False else "is taken for dead"
                    print(f"note: the last run, {_name(holder)}, {end}", flush=True)
                _write(file, me)
                return
            seen = os.stat(path).st_mtime_ns
        if holder.runs():
            raise WorkdirInUse(
                f"{path.parent} is in use by {_name(holder)}; wait for it or end it, "
                "or give another folder"
            )
        # It is elsewhere: the next sign of life, or none in time, will tell.
        if waited and seen != waited:
            raise WorkdirInUse(
                f"{path.parent} is in use by {_name(holder)}, which gives signs of "
                "life; wait for it or end it, or give another folder. Only if it is "
                "gone for certain: --take_workdir"
            )
        if not waited:
            print(
                f"note: {path.parent} is held by {_name(holder)}; waiting up to "
                f"{DEAD:.0f} s for a sign of life",
                flush=True,
            )
        waited = seen
        time.sleep(min(1.0, BEAT / 10))


def _lives(holder, path, override):
    """Whether a holder must be taken for alive."""
    runs = holder.runs()
    if runs is not None:
        return runs
    return not override and _age(path) < DEAD


def _age(path):
    """Seconds since the last sign of life, by the clock of the file system."""
    probe = path.with_name(f"{path.stem}.{os.getpid()}.tmp")
    try:
        probe.touch()
        return os.stat(probe).st_mtime - os.stat(path).st_mtime
    finally:
        probe.unlink(missing_ok=True)


@contextlib.contextmanager
def _guarded(path):
    """Opens the file, made if need be, so that one process at a time reads and writes.

    Where a file system knows no locks, two that start in the same instant are not seen.
    """
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
        return Holder(**json.loads(file.read()))
    except (TypeError, ValueError):
        return None


def _write(file, holder):
    file.seek(0)
    file.truncate()
    file.write(json.dumps(dataclasses.asdict(holder), indent=2).encode() + b"\n")
    file.flush()


def _release(path, me):
    """Removes the file, if it is still this process's own."""
    with contextlib.suppress(OSError), _guarded(path) as file:
        if _read(file) in (me, None):
            path.unlink(missing_ok=True)


def _beat(path, me, ended):
    """Gives signs of life; ends the process where another has taken the folder."""
    while not ended.wait(BEAT):
        with contextlib.suppress(OSError):
            with open(path, "rb") as file:
                holder = _read(file)
            if holder not in (me, None) and not ended.is_set():
                sys.stdout.flush()
                print(
                    f"error: {path.parent} was taken by {_name(holder)}; this process "
                    "ends, so that no two write to it",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(WorkdirInUse.exit_code)
            os.utime(path)


def _name(holder: Holder) -> str:
    return f"process {holder.process} on {holder.host} since {holder.since}"


def _machine() -> str:
    """Tells this machine since its start, and this container, from all others."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id")
        parts.append(boot.read_text(encoding="ascii").strip())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _began(process: int) -> str | None:
    """When a process began; "" where the system does not say, None if it is not there.

    A process that has ended but was not yet waited for is not there.
    """
    try:
        stat: Any = pathlib.Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
    except FileNotFoundError:
        if os.path.isdir("/proc/self"):
            return None
    else:
        # The name of the program, in brackets, may hold spaces.
        fields = stat.rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return ""
