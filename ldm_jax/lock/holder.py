"""Identifies the process that holds a folder, and checks whether it still runs."""

import contextlib
import dataclasses
import os
import pathlib
import socket
import sys
import time
from typing import Any


@dataclasses.dataclass(frozen=True)
class Holder:
    """A process that holds a folder.

    Attributes:
      host: Name of its host.
      machine: Identifies the host, since its last boot, and the container.
      process: Process id.
      began: Start time of the process, in the system's own units.
      since: When it took the folder, as a readable date and time.
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
        """Whether the process runs; None if that cannot be determined from this host.

        Returns:
          Whether it runs, or None.
        """
        if self.machine != _machine():
            return None
        found = _began(self.process)
        return found is not None and found == self.began

    def __str__(self) -> str:
        """Names the process, for messages."""
        return f"process {self.process} on {self.host} since {self.since}"


def _machine() -> str:
    """Identifies this host since its last boot, and this container."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id")
        parts.append(boot.read_text(encoding="ascii").strip())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _began(process: int) -> str | None:
    """Start time of a process; "" if the system has none, None if it does not exist.

    A process that has ended but was not waited for yet counts as not existing.
    """
    try:
        stat: Any = pathlib.Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
    except FileNotFoundError:
        if os.path.isdir("/proc/self"):
            return None
    else:
        # The name of the program, in brackets, may contain spaces.
        fields = stat.rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return ""
