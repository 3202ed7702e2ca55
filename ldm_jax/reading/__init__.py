"""Reads untrusted files: only regular files, within a size limit, and their contents.

| module | what |
| --- | --- |
| `faults` | one-line errors that name the file |
| `lines` | the lines of text files |
| `folder_names` | the status of paths and the names in folders, with errors of disks |
| `ordinary_files` | opens files, reads them whole or in parts |
| `parsing` | parses arrays and JSON |
"""

from ldm_jax.reading.faults import answering, naming
from ldm_jax.reading.folder_names import (
    folders_below,
    is_folder,
    is_kept,
    may_be_folder,
    names_in,
    state_of,
    warn_if_lost,
)
from ldm_jax.reading.lines import read_lines, split_lines
from ldm_jax.reading.ordinary_files import (
    MAX_TEXT,
    Limit,
    Read,
    open_file,
    parts_of,
    read_file,
)
from ldm_jax.reading.parsing import parse_array, parse_json, read_array

__all__ = [
    "Limit",
    "MAX_TEXT",
    "Read",
    "answering",
    "folders_below",
    "is_folder",
    "is_kept",
    "may_be_folder",
    "names_in",
    "naming",
    "open_file",
    "parse_array",
    "parse_json",
    "parts_of",
    "read_array",
    "read_file",
    "read_lines",
    "split_lines",
    "state_of",
    "warn_if_lost",
]
