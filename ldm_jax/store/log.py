"""A file that grows, in a store, where nothing is appended: it is sent anew, whole.

So that the work stays small, it is sent every so many seconds and where it is asked
for, and one of TensorBoard, which reads all files of its folder in order, goes on in
another file when it is long.
"""

import os
import threading
import time

from ldm_jax.store.paths import Place, as_path, explain_fault

# Seconds between two times that it is sent, unasked.
_EVERY = 20.0


class StoreLog:
    """Takes the place of `files.LogFile`; never raises either.

    Attributes:
      path: Where it is.
      failure: Why the last attempt to send it failed, or None.
    """

    def __init__(self, path: Place, part: int | None = None) -> None:
        """Goes on with what is there.

        Args:
          path: Where it is to be.
          part: Bytes after which it goes on in another file, with a number behind the
            name; None never does.
        """
        self.path, self.failure = path, None
        self._first, self._part, self._number = path, part, 0
        self._whole = bytearray(path.read_bytes() if path.is_file() else b"")
        self._sent, self._last = len(self._whole), -_EVERY
        self._lock = threading.Lock()

    def write(self, data: bytes) -> None:
        """Takes what is to be appended.

        Args:
          data: Bytes.
        """
        with self._lock:
            self._whole += data

    def flush(self, now: bool = False) -> None:
        """Sends the file, if it has not been for a while.

        Args:
          now: Also if it has.
        """
        with self._lock:
            due = now or time.monotonic() - self._last >= _EVERY
            if not due or len(self._whole) == self._sent:
                return
            self._last = time.monotonic()
            try:
                self.path.write_bytes(bytes(self._whole))
            # Each store has its own errors, and a log is not worth a run.
            except Exception as error:
                self.failure = explain_fault(error)
                return
            self.failure, self._sent = None, len(self._whole)
            if self._part is not None and self._sent >= self._part:
                self._number += 1
                self.path = as_path(f"{os.fspath(self._first)}.{self._number:04d}")
                self._whole, self._sent = bytearray(), 0

    def close(self) -> None:
        """Sends what waits."""
        self.flush(now=True)
