"""A process that works in a folder: how others know it, and whether it still runs."""

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
    """A process that works in a folder.

    Attributes:
      host: Name of its machine.
      machine: Identifies that machine, since its start, and the container.
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

    def __str__(self) -> str:
        """Names the process, for messages."""
        return f"process {self.process} on {self.host} since {self.since}"


def _machine() -> str:
    """Identifies this machine since its start, and this container."""
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
