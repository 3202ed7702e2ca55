"""Errors that a user can mend; the mains turn them into one line, without traceback.

Each is a built-in kind as well, so that code which calls the package as a library may
catch what it is used to. The message says what was expected, what came and what to
change, in one line. `exit_code` is the status with which a command ends;
docs/reliability.md has the table.
"""

import signal
from typing import ClassVar


class UserError(Exception):
    """The base of all errors that a user can mend; what the mains catch."""

    exit_code: ClassVar[int] = 1


class ConfigError(UserError, ValueError):
    """A config, or a flag, that cannot work."""

    exit_code = 2


class ConversionError(ConfigError):
    """A model that cannot be converted."""


class DataError(UserError, ValueError):
    """Data that cannot be read while a run goes on."""

    exit_code = 3


class Unreachable(UserError, ConnectionError):
    """A store of files that does not answer; nothing is said of the files in it.

    So it is no ValueError, as which damage is counted and left out.
    """

    exit_code = 11


class DecodeError(UserError, ValueError):
    """An image that cannot be read."""

    exit_code = 3


class CheckpointError(UserError, RuntimeError):
    """A checkpoint that is missing, unreadable or of another model."""

    exit_code = 4


class TrainingDiverged(UserError, RuntimeError):
    """A loss or a gradient is no longer finite; the run has stopped."""

    exit_code = 5


class DiskError(UserError, OSError):
    """A file that cannot be written: a disk is full, or may not be written to."""

    exit_code = 6


# What libraries in C++ say where memory is short.
MEMORY_WORDS = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory")


class OutOfMemory(UserError, MemoryError):
    """More memory was asked for than a device or the host has."""

    exit_code = 7


class WorkdirInUse(UserError, RuntimeError):
    """Another run works in the same folder."""

    exit_code = 8


class ProcessLost(UserError, RuntimeError):
    """Another process has gone: one of the job, or one that loads its data."""

    exit_code = 9


class LeftOut(UserError):
    """A model that was converted without something that its images depend on."""

    exit_code = 10


class Stopped(UserError):
    """A run that was asked to stop, by SIGTERM or Ctrl-C, and has saved: no fault."""

    def __init__(self, message: str, number: int = signal.SIGTERM) -> None:
        """Says where a run stands.

        Args:
          message: What was saved.
          number: Number of the signal.
        """
        super().__init__(message)
        # As a shell says of a command that a signal ended: 143 or 130.
        self.exit_code = 128 + number
