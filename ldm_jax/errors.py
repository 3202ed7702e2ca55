"""Errors that a user can fix; the mains print them as one line, without traceback.

Most also subclass a built-in exception, so that code that uses the package as a library
can catch the usual types. The message says what was expected, what came and what to
change, in one line. `exit_code` is the exit code of the command; docs/reliability.md
has the table.
"""

import signal
from typing import ClassVar


class UserError(Exception):
    """Base class of all errors that a user can fix, which the mains catch."""

    exit_code: ClassVar[int] = 1


class ConfigError(UserError, ValueError):
    """An invalid config or flag."""

    exit_code = 2


class ConversionError(ConfigError):
    """A model that cannot be converted."""


class DataError(UserError, ValueError):
    """Data that cannot be read during a run."""

    exit_code = 3


class Unreachable(UserError, ConnectionError):
    """A file store that does not answer, which does not mean that its files are bad.

    So it is not a ValueError: those count as damaged data, which is skipped.
    """

    exit_code = 11


class DecodeError(UserError, ValueError):
    """An image that cannot be read."""

    exit_code = 3


class CheckpointError(UserError, RuntimeError):
    """A checkpoint that is missing, unreadable or from another model."""

    exit_code = 4


class TrainingDiverged(UserError, RuntimeError):
    """A loss or gradient is no longer finite; the run has stopped."""

    exit_code = 5


class DiskError(UserError, OSError):
    """A file that cannot be written: the disk is full or not writable."""

    exit_code = 6


# In error messages of C++ libraries that run out of memory.
MEMORY_WORDS = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory")


class OutOfMemory(UserError, MemoryError):
    """A device or the host is out of memory."""

    exit_code = 7


class WorkdirInUse(UserError, RuntimeError):
    """Another run is using the same folder."""

    exit_code = 8


class ProcessLost(UserError, RuntimeError):
    """Another process of the job, or one that loads its data, has died."""

    exit_code = 9


class LeftOut(UserError):
    """A model was converted without something that its images depend on."""

    exit_code = 10


class Stopped(UserError):
    """A run was stopped by SIGTERM or Ctrl-C, and has saved: not a failure."""

    def __init__(self, message: str, number: int = signal.SIGTERM) -> None:
        """Creates the error.

        Args:
          message: What was saved.
          number: Number of the signal.
        """
        super().__init__(message)
        # A shell's exit code of a command that a signal ended: 143 or 130.
        self.exit_code = 128 + number
