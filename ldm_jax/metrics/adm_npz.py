"""Images in the npz of guided-diffusion, `arr_0`, read and written as a stream.

50,000 images of 256 px are 9.8 GB, so only a few images are in memory at a time.
"""

import contextlib
import hashlib
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from ldm_jax.annotations import Shaped, UInt8
from ldm_jax.errors import ConfigError, DataError
from ldm_jax.files import replacing, writing
from ldm_jax.store import as_path, cache_folder, is_remote, raise_if_silent

Path = str | os.PathLike

# Names of the arrays of images and of their classes.
IMAGES, LABELS = "arr_0", "arr_1"


def keys_of(path: Path, flag: str = "--images") -> set[str]:
    """Lists the arrays of an npz.

    Args:
      path: Path of the file.
      flag: The flag that names the file, for messages.

    Returns:
      Names of the arrays.

    Raises:
      ConfigError: If it is not an npz.
    """
    try:
        with _opened(path) as archive:
            names = archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise_if_silent(path, error)
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{flag}: {path} is no npz that can be read: {reason}") from (
            error
        )
    return {name.removesuffix(".npy") for name in names}


class StoredImages:
    """The images of an npz, read lazily.

    Attributes:
      shape: (N, H, W, 3).
      fingerprint: Checksum and size of the array, as recorded in the file.
    """

    def __init__(self, path: Path, flag: str = "--images") -> None:
        """Reads the header of the array of images.

        Args:
          path: Path of the npz.
          flag: The flag that names the file, for messages.

        Raises:
          ConfigError: If it has no images, or they are not uint8 [N, H, W, 3].
        """
        keys = keys_of(path, flag)
        if IMAGES not in keys:
            raise ConfigError(
                f"{flag}: {path} holds {', '.join(sorted(keys)) or 'nothing'} and no "
                f"{IMAGES}: give an npz with images as {IMAGES}, uint8 [N, H, W, 3]"
            )
        self._path, self._flag = path, flag
        with self._open() as file:
            self.shape, dtype = self._header(file)
        if dtype != np.uint8 or len(self.shape) != 4 or self.shape[3] != 3:
            raise ConfigError(
                f"{flag}: {IMAGES} of {path} is {dtype} {list(self.shape)}: give "
                "uint8 [N, H, W, 3]"
            )
        with _opened(path) as archive:
            member = archive.getinfo(f"{IMAGES}.npy")
        self.fingerprint = f"{member.CRC:08x}{member.file_size:x}"

    @contextlib.contextmanager
    def _open(self):
        with _opened(self._path) as archive, archive.open(f"{IMAGES}.npy") as file:
            yield file

    def _header(self, file):
        """Reads (shape, type) of the array; leaves the file at its first data byte."""
        try:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_2_0
            if version == (1, 0):
                read = np.lib.format.read_array_header_1_0
            shape, fortran, dtype = read(file)
        # The header is a Python literal: a damaged one can raise nearly anything.
        except Exception as error:
            raise_if_silent(self._path, error)
            text = " ".join(str(error).split()) or type(error).__name__
            raise ConfigError(
                f"{self._flag}: {IMAGES} of {self._path} is no NumPy array: {text}"
            ) from error
        if fortran and len(shape) > 1:
            raise ConfigError(
                f"{self._flag}: {IMAGES} of {self._path} is in Fortran order, which "
                "cannot be streamed: write it again with numpy.ascontiguousarray"
            )
        return shape, dtype

    def blocks(
        self, size: int, start: int = 0
    ) -> Iterator[UInt8[np.ndarray, "rows height width 3"]]:
        """Reads the images in order, in blocks.

        Args:
          size: Images per block.
          start: Number of the first image.

        Yields:
          uint8 [size, H, W, 3]; the last block may have fewer.

        Raises:
          DataError: If the file is damaged or truncated.
        """
        count, each = self.shape[0], int(np.prod(self.shape[1:]))
        with self._open() as file:
            self._header(file)
            try:
                file.seek(start * each, os.SEEK_CUR)
                for first in range(start, count, size):
                    rows = min(size, count - first)
                    data = _read_all(file, rows * each)
                    yield np.frombuffer(data, np.uint8).reshape(rows, *self.shape[1:])
            except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
                raise_if_silent(self._path, error)
                raise DataError(
                    f"{self._path} is damaged or cut short ({error}): write it again"
                ) from error


@contextlib.contextmanager
def _opened(path):
    """The npz opened as a stream, also from cloud storage."""
    with contextlib.ExitStack() as stack:
        if is_remote(path):
            path = stack.enter_context(as_path(path).open("rb"))
        yield stack.enter_context(zipfile.ZipFile(path))


def _read_all(file, count):
    """Reads exactly `count` bytes; one read of a zip member may return fewer."""
    data = bytearray(count)
    view, done = memoryview(data), 0
    while done < count:
        part = file.readinto(view[done:])
        if not part:
            raise EOFError(f"{count - done:,} bytes are missing")
        done += part
    return data


def _scratch(path):
    """Path beside which unfinished images are kept; a local one for cloud storage."""
    if not is_remote(path):
        return path
    name = hashlib.sha256(os.fspath(path).encode()).hexdigest()[:24]
    return cache_folder() / "unfinished" / name / path.name


class ImageFile:
    """Collects images on disk, and makes an npz of them once all are written.

    The images of an interrupted run stay on disk: the next run can continue in the same
    file, and only `remove` deletes it.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int, int]) -> None:
        """Reads and writes nothing yet.

        Args:
          path: The npz to write; until then the images are in a file beside it.
          shape: (N, H, W, 3).
        """
        self._path, self._shape = as_path(path), tuple(shape)
        self._part = _scratch(self._path).with_name(f"{self._path.stem}.partial.npy")
        self._array = None

    def is_begun(self) -> bool:
        """Returns whether an interrupted run has left a file of images of this shape.

        Returns:
          Whether it has.
        """
        try:
            found = np.load(self._part, mmap_mode="r")
        # A file that was interrupted before its header was complete cannot be used.
        except (OSError, ValueError, EOFError) as error:
            raise_if_silent(self._part, error)
            return False
        return found.shape == self._shape and found.dtype == np.uint8

    def open(self, again: bool) -> None:
        """Opens the file, before anything is written.

        Args:
          again: Whether to start a new file; else that of an interrupted run is used.

        Raises:
          DiskError: If there is no room for all images, or writing is not permitted.
        """
        with writing(self._part):
            if again:
                self._make()
            self._array = np.lib.format.open_memmap(self._part, "r+")

    def _make(self):
        """Creates the file with room for all images, zeros."""
        self._part.parent.mkdir(parents=True, exist_ok=True)
        try:
            np.lib.format.open_memmap(self._part, "w+", np.uint8, self._shape)
            # On a full disk, writing to a hole of a mapped file would kill the process.
            # Not all systems can reserve the space.
            if hasattr(os, "posix_fallocate"):
                with open(self._part, "r+b") as file:
                    size = os.fstat(file.fileno()).st_size
                    os.posix_fallocate(file.fileno(), 0, size)
        except OSError:
            self.remove()
            raise

    def write(
        self, start: int, images: UInt8[np.ndarray, "rows height width 3"]
    ) -> None:
        """Writes images to their places.

        Args:
          start: Number of the first image.
          images: uint8 [n, H, W, 3].
        """
        self._array[start : start + len(images)] = images

    def flush(self) -> None:
        """Flushes the written images to disk.

        Raises:
          DiskError: If it cannot be written.
        """
        with writing(self._part):
            self._array.flush()

    def finish(self, count: int, **others: Shaped[Any, "..."]) -> None:
        """Makes the npz; the images beside it stay until `remove`.

        Args:
          count: Number of images, N or fewer.
          **others: Further arrays [count, ...] by name, such as `arr_1`, the classes.

        Raises:
          DiskError: If it cannot be written.
        """
        self.flush()
        # The file is closed before it is copied.
        self._array = None
        with (
            replacing(self._path) as temporary,
            zipfile.ZipFile(temporary, "w") as archive,
        ):
            stored = np.load(self._part, mmap_mode="r")[:count]
            write_stream(archive, IMAGES, len(stored), stored)
            write_arrays(archive, others)

    def remove(self) -> None:
        """Removes the images beside the npz, once no saved state needs them."""
        self._part.unlink(missing_ok=True)


def write_stream(
    archive: zipfile.ZipFile,
    name: str,
    count: int,
    rows: Iterable[Shaped[np.ndarray, "..."]],
) -> tuple[int, ...]:
    """Adds an array to an npz row by row, with one row in memory at a time.

    Args:
      archive: The npz, opened for writing.
      name: Name of the array.
      count: Number of rows, at least one.
      rows: The rows [...], all of one shape and type.

    Returns:
      Shape of the array.

    Raises:
      ValueError: If there are more or fewer rows, or a shape or type differs.
    """
    written, shape, dtype = 0, None, None
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        for row in map(np.asarray, rows):
            if shape is None:
                shape, dtype = row.shape, row.dtype
                header = {"descr": np.lib.format.dtype_to_descr(dtype)}
                header |= {"fortran_order": False, "shape": (count, *shape)}
                np.lib.format.write_array_header_1_0(file, header)
            if (row.shape, row.dtype) != (shape, dtype):
                raise ValueError(f"row {written} of {name} is unlike the first one")
            file.write(np.ascontiguousarray(row).tobytes())
            written += 1
    if written != count:
        raise ValueError(f"{name} has {written} rows and not {count}")
    return count, *shape


def write_arrays(
    archive: zipfile.ZipFile, arrays: Mapping[str, Shaped[Any, "..."]]
) -> None:
    """Adds arrays to an npz, as `numpy.savez` does.

    Args:
      archive: The npz, opened for writing.
      arrays: Name -> array [...].
    """
    for name, array in arrays.items():
        with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array(file, np.asanyarray(array), allow_pickle=False)
