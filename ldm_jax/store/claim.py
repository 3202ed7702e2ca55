"""One run at a time in a folder of a store, where nothing can be locked.

Who works in a folder makes an object there, which the store lets only one do, and
writes it anew every few seconds with a greater number in it. Others watch: where the
number stands still for a minute by their own clock, the object is taken for that of a
dead run and removed. Two that remove it at once are told apart by what stands there a
moment later; should even that fail, the one that lost ends at its next sign of life.
"""

import json
import os
import time
import uuid
from typing import Any

from ldm_jax.store.paths import Place, file_system

# Seconds until a second look says who has it.
SETTLE = 2.0


class Claim:
    """An object that says who works in a folder."""

    def __init__(self, path: Place, holder: dict[str, Any]) -> None:
        """Looks at nothing yet.

        Args:
          path: Address of the object.
          holder: What it says, for JSON.
        """
        self._path, self._holder = path, holder
        self._token, self._number = uuid.uuid4().hex, 0

    def read(self) -> dict[str, Any] | None:
        """Reads the object.

        Returns:
          What it says, with "token" and "number"; None where it is not there, or is
          nothing that can be read.
        """
        try:
            found = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def make(self) -> bool:
        """Makes the object, if there is none.

        Returns:
          Whether it is this one's.
        """
        try:
            with file_system(self._path).open(os.fspath(self._path), "xb") as file:
                file.write(self._data())
        except FileExistsError:
            # Perhaps its own: where an answer is lost, the library asks again.
            pass
        return self.is_mine()

    def replace(self, seen: dict[str, Any]) -> bool:
        """Makes the object in place of a dead run's.

        Args:
          seen: What that says; another one is left alone.

        Returns:
          Whether it is this one's.
        """
        if self.read() == seen:
            self._path.unlink(missing_ok=True)
        if not self.make():
            return False
        time.sleep(SETTLE)
        return self.is_mine()

    def is_mine(self) -> bool:
        """Says whether the object is this one's.

        Returns:
          Whether it is.
        """
        return (self.read() or {}).get("token") == self._token

    def beat(self) -> None:
        """Gives a sign of life."""
        self._number += 1
        self._path.write_bytes(self._data())

    def release(self) -> None:
        """Removes the object, if it is this one's."""
        if self.is_mine():
            self._path.unlink(missing_ok=True)

    def _data(self):
        marks = {"token": self._token, "number": self._number}
        return json.dumps(self._holder | marks, indent=2).encode() + b"\n"
