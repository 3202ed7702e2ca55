"""A growing log file in a store, which cannot append: it is uploaded again as a whole.

To limit the traffic, it is uploaded only at intervals or on request, and an event file
of TensorBoard, which reads all files of its folder in order, continues in another file
when it is long.
"""

import os
import threading
import time

from ldm_jax.store.paths import Place, as_path, explain_fault

# Seconds between two uploads that are not requested.
_EVERY = 20.0


class StoreLog:
    """The counterpart of `files.LogFile` in a store; never raises either.

    Attributes:
      path: Address of the current file.
      failure: Why the last upload failed, or None.
    """

    def __init__(self, path: Place, part: int | None = None) -> None:
        """Continues the existing file, if there is one.

        Args:
          path: Address of the file.
          part: Bytes after which it continues in another file, with a number appended
            to the name; None for a single file.
        """
        self.path, self.failure = path, None
        self._first, self._part, self._number = path, part, 0
        self._whole = bytearray(path.read_bytes() if path.is_file() else b"")
        self._sent, self._last = len(self._whole), -_EVERY
        self._lock = threading.Lock()

    def write(self, data: bytes) -> None:
        """Appends data, to be uploaded by `flush`.

        Args:
          data: Bytes.
        """
        with self._lock:
            self._whole += data

    def flush(self, now: bool = False) -> None:
        """Uploads the file, if the last upload was long enough ago.

        Args:
          now: Whether to upload it in any case.
        """
        with self._lock:
            due = now or time.monotonic() - self._last >= _EVERY
            if not due or len(self._whole) == self._sent:
                return
            self._last = time.monotonic()
            try:
                self.path.write_bytes(bytes(self._whole))
            # Each store has its own errors, and a failed log must not end a run.
            except Exception as error:
                self.failure = explain_fault(error)
                return
            self.failure, self._sent = None, len(self._whole)
            if self._part is not None and self._sent >= self._part:
                self._number += 1
                self.path = as_path(f"{os.fspath(self._first)}.{self._number:04d}")
                self._whole, self._sent = bytearray(), 0

    def close(self) -> None:
        """Uploads the remaining data."""
        self.flush(now=True)
