"""Turns any error into one line for the user and an exit code."""

import ast
import errno
import json
import pathlib
import re
import traceback
from typing import NamedTuple

from ldm_jax.errors import (
    MEMORY_WORDS,
    CheckpointError,
    ConfigError,
    DataError,
    DecodeError,
    DiskError,
    OutOfMemory,
    ProcessLost,
    Unreachable,
    UserError,
)
from ldm_jax.store import SILENT, causes_of, explain_fault, is_fault, raise_if_silent

_PACKAGE = pathlib.Path(__file__).absolute().parent.parent
_LIBRARIES = ("site-packages", "dist-packages", "lib/python3", "<frozen", "<string>")

# Failures of a disk; libraries report some of them only as text.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.ESTALE)
_DISK_TEXTS = (
    "No space left on device",
    "Disk quota exceeded",
    "Read-only file system",
    "Input/output error",
)
# Paths that are not what they should be.
_PATH = (
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENOTEMPTY,
    errno.ENAMETOOLONG,
    errno.ELOOP,
)

# Errors about unreadable files, which may be caused by the file's disk.
_OF_FILES = (ConfigError, DataError, DecodeError)

# Messages of Orbax and JAX when a process does not reach a barrier in time.
_BARRIER = re.compile(
    "waiting at barrier|barrier timed out|CoordinationServiceError", re.IGNORECASE
)

# Characters of a message that are kept.
_LONGEST = 600


class Failure(NamedTuple):
    """How a command ends.

    Attributes:
      line: What is wrong and what to do, without a line break.
      exit_code: Exit code of the process.
    """

    line: str
    exit_code: int


def explain(error: BaseException, lower: str = "the sizes") -> Failure:
    """Explains an error to the user in one line.

    Args:
      error: Any exception.
      lower: What to lower when memory runs out, for this command.

    Returns:
      A Failure.
    """
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    silent = _silence(error)
    if silent is not None:
        line, code = silent, silent.exit_code
    elif isinstance(error, UserError):
        line, code = error, error.exit_code
    elif _BARRIER.search(str(error)):
        line, code = _barrier(error)
    elif _is_of_store(error):
        line, code = _store(error)
    elif isinstance(error, OSError):
        line, code = _os_error(error)
    elif isinstance(error, MemoryError):
        line, code = _out_of_memory("host", _first_line(error), lower)
    elif isinstance(error, RecursionError):
        line, code = _recursion(error)
    elif isinstance(error, (json.JSONDecodeError, UnicodeDecodeError)):
        line, code = _malformed(error)
    elif isinstance(error, ImportError):
        line, code = f"{_first_line(error)}: install it, or again", UserError.exit_code
    elif any(kind.__module__ == "flax.errors" for kind in type(error).__mro__):
        line, code = _flax(error)
    else:
        line, code = _by_text(error, lower)
    return Failure(one_line(line), code)


def one_line(text: object) -> str:
    """Puts a message, which may be an error, on one line.

    Args:
      text: A message of any length.

    Returns:
      The line.
    """
    text = str(text)
    if len(text) > 1 and text[:1] in ("'", '"') and text[0] == text[-1]:
        # KeyError quotes its message.
        try:
            text = str(ast.literal_eval(text))
        except (SyntaxError, ValueError):
            pass
    # Text that comes from a file must not contain terminal control characters.
    text = "".join(c if c.isprintable() else " " for c in text)
    text = " ".join(text.split())
    return text if len(text) <= 2 * _LONGEST else text[: 2 * _LONGEST] + " ..."


def _silence(error):
    """The Unreachable error that an error was caused by, or None."""
    # Errors on writing report it themselves, and errors of processes and checkpoints
    # have exit codes of their own.
    if isinstance(error, UserError) and not isinstance(error, _OF_FILES):
        return None
    for cause in causes_of(error):
        if isinstance(cause, Unreachable):
            return cause
        is_of_file = isinstance(cause, OSError) and cause.filename is not None
        if is_of_file and cause.errno in SILENT:
            try:
                raise_if_silent(cause.filename, cause)
            except Unreachable as silent:
                return silent
    return None


def _os_error(error):
    names = [str(n) for n in (error.filename, error.filename2) if n is not None]
    if error.errno is None and not names:
        return _by_text(error, "")
    if isinstance(error, BrokenPipeError) and not names:
        return "what reads the output has gone (broken pipe)", UserError.exit_code
    reason = error.strerror or str(error)
    what = f"{' to '.join(names)}: {reason}" if names else reason
    if error.errno in _DISK:
        return _disk(what)
    if isinstance(error, PermissionError):
        return f"{what}; give a path that you may use", DiskError.exit_code
    if error.errno in _PATH:
        return f"{what}; check the path", ConfigError.exit_code
    return what, UserError.exit_code


def _is_of_store(error):
    """Whether an error comes from an object store; some have types of disk errors."""
    frames = traceback.extract_tb(error.__traceback__)
    return is_fault(error) or any("/gcsfs/" in frame.filename for frame in frames)


def _store(error):
    return (
        f"{explain_fault(error)}; see that the bucket and the object are there, that "
        "you may use them (gcloud auth application-default login) and that the network "
        "is up"
    ), DiskError.exit_code


def _barrier(error):
    return (
        f"the processes of this job did not meet in time ({_first_line(error)[:160]}): "
        "one of them hangs, or has gone; see what it printed, and the same command "
        "continues from what was saved"
    ), ProcessLost.exit_code


def _by_text(error, lower):
    """Explains errors by their message, as C++ libraries have no types for them."""
    text = str(error)
    if any(words in text for words in _DISK_TEXTS):
        return _disk(_first_line(text))
    if any(words in text for words in MEMORY_WORDS):
        asked = re.search(r"(?:allocat\w*|request for) ([\d.]+ ?\w*)", text)
        asked = f"{_size(asked[1])} were asked for" if asked else _first_line(text)
        return _out_of_memory("device", asked, lower)
    return _unexpected(error), UserError.exit_code


def _disk(what):
    return (
        f"{what}; what was saved before is intact: make room or give another folder, "
        "and the same command continues"
    ), DiskError.exit_code


def _out_of_memory(where, asked, lower):
    asked = asked or "more was asked for than there is"
    return (
        f"out of memory on the {where}: {asked}; lower {lower}",
        OutOfMemory.exit_code,
    )


def _size(text):
    """Formats a number of bytes, e.g. "1.5 GiB"; other text is returned unchanged."""
    number = re.match(r"(\d+)( ?bytes?)?$", text)
    if not number:
        return text
    value, units = float(number[1]), ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.4g} {units[0]}"


def _recursion(error):
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    kinds = [k for k in ("json", "yaml") if any(f"/{k}/" in name for name in files)]
    what = f"a {kinds[0].upper()} file or value" if kinds else "something that was read"
    return f"{what} is nested too deeply{_where(error)}", ConfigError.exit_code


def _malformed(error):
    kind = "JSON" if isinstance(error, json.JSONDecodeError) else "UTF-8 text"
    line = f"what was read is not {kind}: {_first_line(error)}{_where(error)}"
    return line, ConfigError.exit_code


def _flax(error):
    line = f"weights and model do not agree: {_first_line(error)}"
    return f"{line}; use the config that made the weights", CheckpointError.exit_code


def _unexpected(error):
    text = _first_line(error)
    text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    file, _ = _place(error)
    if file and not _is_ours(file):
        # A module of the user's own, e.g. another backbone.
        return f"{text}{_where(error)}; fix it there"
    return (
        f"unexpected {text}{_where(error)}; --traceback shows more, please report it "
        "with that"
    )


def _where(error):
    """The place in the package, or in a file of the user, where an error was raised."""
    file, line = _place(error)
    if file and _is_ours(file):
        file = pathlib.Path(file).relative_to(_PACKAGE.parent)
    return f" (in {file}, line {line})" if file else ""


def _place(error):
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not any(part in frame.filename for part in _LIBRARIES):
            return frame.filename, frame.lineno
    return None, None


def _is_ours(file):
    return pathlib.Path(file).is_relative_to(_PACKAGE)


def _first_line(text):
    lines = [line.strip() for line in str(text).splitlines() if line.strip()]
    return lines[0][:_LONGEST] if lines else ""
