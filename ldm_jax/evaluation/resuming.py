"""The saved state from which an interrupted evaluation resumes."""

import json
import os
import zipfile
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ldm_jax import peers
from ldm_jax.annotations import Shaped
from ldm_jax.errors import ConfigError, DataError
from ldm_jax.evaluation.as_they_are.contents import is_older_hash
from ldm_jax.files import replacing
from ldm_jax.images import same_range
from ldm_jax.metrics.adm_npz import write_arrays
from ldm_jax.sampling.settings import first_difference
from ldm_jax.store import as_path, exists, local_copy, raise_if_silent

_SETTINGS, _POSITION = "settings", "position"


# Records whose "name" says where the images are, not which they are.
_NAMED = ("images", "reference")


def difference(
    there: Mapping[str, Any], here: Mapping[str, Any]
) -> tuple[str, Any, Any] | None:
    """Finds the first difference between the settings of two evaluations.

    The names of images and reference are ignored: their fingerprints identify them,
    wherever they are. What older versions did not record is ignored, too, see
    `brought_up`.

    Args:
      there: Settings of `scoring.settings_of`, from a JSON file.
      here: Likewise.

    Returns:
      (dotted key, value there, value here) of the first difference, or None.
    """
    there, here = _nameless(there), _nameless(here)
    for key in _NAMED:
        if isinstance(there.get(key), dict) and isinstance(here.get(key), dict):
            there[key] = brought_up(there[key], here[key])
    return first_difference(there, here)


def brought_up(there: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, Any]:
    """Converts an older version's record of a set to today's form, where both agree.

    Older versions hashed only a folder's list of files, and did not record which values
    are black and white, or in other words.

    Args:
      there: Record of a set, as `ImageSet.record` or that of a reference.
      here: Record of the current version.

    Returns:
      The record; entries that do not agree are unchanged.
    """
    there = dict(there)
    hashes = there.get("images"), here.get("images")
    if all(isinstance(each, str) for each in hashes) and is_older_hash(*hashes):
        there["images"] = here["images"]
    cuts = there.get("preprocessing"), here.get("preprocessing")
    if all(isinstance(each, dict) for each in cuts):
        was, is_now = (cut.get("values") for cut in cuts)
        known = "values" in cuts[0]
        if not known or (was and is_now and same_range(was, is_now)):
            there["preprocessing"] = cuts[0] | {"values": is_now}
    return there


def _nameless(settings):
    # As they would be read from a file: without tuples.
    settings = json.loads(json.dumps(settings))
    for key in _NAMED:
        if isinstance(settings.get(key), dict):
            settings[key].pop("name", None)
    return settings


def agree(path: str | os.PathLike, said: str) -> None:
    """Checks that all processes find the same at a path; every process must call it.

    Args:
      path: The path that they look at.
      said: What this process finds there, in a few words.

    Raises:
      DataError: If it is not the same for all of them.
    """
    found = peers.gather(said)
    if len(set(found)) > 1:
        raise DataError(
            f"{path} is not the same for all processes ({', '.join(found)}): give a "
            "folder that all of them share"
        )


def is_there(path: str | os.PathLike) -> bool:
    """Returns whether a file exists, for all processes; every process must call it.

    Args:
      path: Path of the file.

    Returns:
      Whether it exists.

    Raises:
      DataError: If some processes find it and others do not.
    """
    found = exists(as_path(path))
    agree(path, "there" if found else "not there")
    return found


class Saved:
    """The state of one measurement in a file, which each save replaces as a whole.

    The first process writes it and all read it: the folder must be shared, like that of
    checkpoints.
    """

    def __init__(
        self, path: str | os.PathLike, settings: Mapping[str, Any], every: int
    ) -> None:
        """Reads nothing yet.

        Args:
          path: The file to read and write.
          settings: JSON-like dict: everything that the results depend on.
          every: Images between two saves.
        """
        self._path, self._every = as_path(path), every
        self._settings, self._saved_at = settings, 0

    def load(self) -> tuple[int, dict[str, Shaped[np.ndarray, "..."]]]:
        """Reads the state of an earlier run; every process must call it.

        Returns:
          (position, state): the number of images that were measured, and the state of
          `Measurement.state`, arrays [...] by name; (0, {}) if there is no file.

        Raises:
          ConfigError: If it is of other settings.
          DataError: If it cannot be read, or not all processes find the same.
        """
        position, state = self._read() if self.exists() else (0, {})
        agree(self._path, f"at {position}")
        self._saved_at = position
        return position, state

    def exists(self) -> bool:
        """Returns whether an interrupted run has left a state.

        Returns:
          Whether the file exists.
        """
        return exists(self._path)

    def begin_anew(self) -> None:
        """Restarts at the first image, whatever was read."""
        self._saved_at = 0

    def _read(self):
        try:
            with np.load(local_copy(self._path), allow_pickle=False) as archive:
                state = {name: archive[name] for name in archive.files}
            settings = json.loads(str(state.pop(_SETTINGS)))
            position = int(state.pop(_POSITION))
        # A damaged file can raise nearly anything.
        except Exception as error:
            raise_if_silent(self._path, error)
            raise DataError(
                f"{self._path}, which a cut evaluation has left, cannot be read "
                f"({error}): remove it to start over"
            ) from error
        other = difference(settings, self._settings)
        if other is not None:
            key, there, here = other
            raise ConfigError(
                f"{self._path} is of a cut evaluation with other settings ({key}: "
                f"{there} there, {here} here): use another --outdir, or remove it"
            )
        return position, state

    def due(self, position: int) -> bool:
        """Returns whether it is time to save.

        Args:
          position: Number of images that were measured.

        Returns:
          Whether it is.
        """
        return position - self._saved_at >= self._every

    def save(
        self,
        position: int,
        state: Mapping[str, Shaped[np.ndarray, "..."] | np.int64 | bool],
    ) -> None:
        """Writes the file atomically, on the first process.

        Args:
          position: Number of images that were measured.
          state: `Measurement.state` and further entries: arrays [...] by name.

        Raises:
          DiskError: If it cannot be written.
        """
        self._saved_at = position
        if jax.process_index():
            return
        arrays = {_SETTINGS: np.array(json.dumps(self._settings)), **state}
        arrays[_POSITION] = np.int64(position)
        with (
            replacing(self._path) as temporary,
            zipfile.ZipFile(temporary, "w") as archive,
        ):
            write_arrays(archive, arrays)

    def remove(self) -> None:
        """Removes the file, once the results are written."""
        if not jax.process_index():
            self._path.unlink(missing_ok=True)
