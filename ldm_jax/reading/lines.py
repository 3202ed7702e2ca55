"""Lines of text files."""

import os
import re

from ldm_jax.reading.ordinary_files import MAX_TEXT, read_file

# `str.splitlines` also splits at others, such as U+2028, which captions may contain.
_END = re.compile(r"\r\n|\r|\n")


def split_lines(data: bytes) -> list[str]:
    """Splits the bytes of a text file.

    Args:
      data: Bytes of UTF-8, with or without a byte order mark.

    Returns:
      The lines, stripped; text after the last line ending is a line, too, if not empty.

    Raises:
      ValueError: If they are not UTF-8; it names the line.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"line {line} is not UTF-8 ({error.reason}): save the file as UTF-8"
        ) from error
    lines = [line.strip() for line in _END.split(text)]
    return lines if lines[-1] else lines[:-1]


def read_lines(path: str | os.PathLike) -> list[str]:
    """Reads the lines of a text file.

    Args:
      path: Path of the file.

    Returns:
      See `split_lines`.

    Raises:
      OSError: If it cannot be read.
      ValueError: If it is too large, or not UTF-8.
    """
    return split_lines(read_file(path, MAX_TEXT))
