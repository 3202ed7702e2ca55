"""Object stores: paths that begin with gs://, and what differs from a local disk.

A store holds whole objects by name. There are no folders, objects are written
atomically, and nothing can be appended, renamed or locked. So a file is written on the
local disk and then uploaded as a whole, a log is uploaded again as a whole, and a run
claims a folder by an object that only one run can create.

| module | what |
| --- | --- |
| `paths` | paths on a local disk or in a store |
| `copies` | local copies of files that can only be read from a disk |
| `presence` | whether a path exists, and is a file or a folder |
| `log` | log files that grow |
| `claim` | one run at a time in a folder |
| `silence` | tells a store, disk or mount that does not answer from a damaged file |
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
