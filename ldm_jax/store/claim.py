"""One run at a time in a folder of a store, where nothing can be locked.

A run claims a folder by creating an object in it, which the store allows only one run,
and rewrites the object every few seconds with a larger number (a heartbeat). Others
watch it: if the number does not change for a minute of their own clock, the object is
considered that of a dead run and removed. If two runs remove it at once, the content of
the object a moment later decides; should even that fail, the losing run ends at its
next heartbeat.
"""

import json
import os
import time
import uuid
from typing import Any

from ldm_jax.store.paths import Place, file_system

# Seconds until a second look decides who holds the claim.
SETTLE = 2.0


class Claim:
    """An object that records which run holds a folder."""

    def __init__(self, path: Place, holder: dict[str, Any]) -> None:
        """Stores the arguments, without reading the object.

        Args:
          path: Address of the object.
          holder: Its content, a JSON-like dict.
        """
        self._path, self._holder = path, holder
        self._token, self._number = uuid.uuid4().hex, 0

    def read(self) -> dict[str, Any] | None:
        """Reads the object.

        Returns:
          Its content, with "token" and "number"; None if it does not exist, {} if it is
          not valid.
        """
        try:
            found = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def make(self) -> bool:
        """Creates the object, if there is none.

        Returns:
          Whether this run holds it.
        """
        try:
            with file_system(self._path).open(os.fspath(self._path), "xb") as file:
                file.write(self._data())
        except FileExistsError:
            # It may be this run's own: if a response is lost, the library retries.
            pass
        return self.is_mine()

    def replace(self, seen: dict[str, Any]) -> bool:
        """Replaces the object of a dead run.

        Args:
          seen: Content of that object; any other object is left alone.

        Returns:
          Whether this run holds it.
        """
        if self.read() == seen:
            self._path.unlink(missing_ok=True)
        if not self.make():
            return False
        time.sleep(SETTLE)
        return self.is_mine()

    def is_mine(self) -> bool:
        """Returns whether this run holds the object.

        Returns:
          Whether it does.
        """
        return (self.read() or {}).get("token") == self._token

    def beat(self) -> None:
        """Writes a heartbeat."""
        self._number += 1
        self._path.write_bytes(self._data())

    def release(self) -> None:
        """Removes the object, if this run holds it."""
        if self.is_mine():
            self._path.unlink(missing_ok=True)

    def _data(self):
        marks = {"token": self._token, "number": self._number}
        return json.dumps(self._holder | marks, indent=2).encode() + b"\n"
