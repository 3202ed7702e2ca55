"""Object stores: where a path begins with gs://, and what is done otherwise there.

A store holds whole objects by name. There are no folders, an object is written in one
move or not at all, and nothing is appended, renamed or locked. So a file is written on
the local disk and sent in one move, a log is sent anew as a whole, and who works in a
folder shows it by an object that only one can make.

| module | what |
| --- | --- |
| `paths` | what a user gives, as a path: of a local disk or of a store |
| `copies` | local copies of what can only be read from a disk |
| `presence` | what is at a path |
| `log` | files that grow |
| `claim` | one run at a time in a folder |
| `silence` | what does not answer, a store, a disk or a mount, and what is damaged |
"""

from ldm_jax.store.claim import Claim
from ldm_jax.store.copies import cache_folder, local_copy
from ldm_jax.store.log import StoreLog
from ldm_jax.store.paths import (
    Place,
    as_path,
    explain_fault,
    fetch,
    file_system,
    files_below,
    for_each,
    is_fault,
    is_hidden,
    is_remote,
    listing,
    local_only,
    read_part,
    send,
    size_of,
)
from ldm_jax.store.presence import exists, is_dir, is_file, look
from ldm_jax.store.silence import (
    SILENT,
    causes_of,
    is_of_one_file,
    is_silent,
    raise_if_silent,
)

__all__ = [
    "SILENT",
    "Claim",
    "Place",
    "StoreLog",
    "as_path",
    "cache_folder",
    "causes_of",
    "exists",
    "explain_fault",
    "fetch",
    "file_system",
    "files_below",
    "for_each",
    "is_dir",
    "is_fault",
    "is_file",
    "is_hidden",
    "is_of_one_file",
    "is_remote",
    "is_silent",
    "listing",
    "local_copy",
    "local_only",
    "look",
    "raise_if_silent",
    "read_part",
    "send",
    "size_of",
]
