"""Files of samples in a folder: a PNG file each, or shards of many as npz or tar.

Files are written atomically, so that existing files are complete; a resumed run draws
what is missing. A shard holds a fixed range of the samples, drawn in batches of its
own: its bytes do not depend on the number of processes or on interruptions.
"""

import abc
import io
import re
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ldm_jax.annotations import Shaped
from ldm_jax.errors import ConfigError, DecodeError, UserError
from ldm_jax.files import replacing
from ldm_jax.images import (
    encode_image,
    file_values,
    from_values,
    read_image,
    suffix_of,
    write_image,
)
from ldm_jax.metrics.adm_npz import IMAGES, LABELS, write_arrays, write_stream
from ldm_jax.sampling.conditions import conditions_from, make_example
from ldm_jax.sampling.task import Task
from ldm_jax.store import Place, exists, for_each, is_dir, local_copy, raise_if_silent
from ldm_jax.trained import Trained

_REDRAW = "remove it, and the same command draws it again"

# Names of samples in files of their own.
_SAMPLE = re.compile(r"\d{6,}\.(png|npy)")

# An iterator over images, and batches of (numbers of samples, images).
Images = Iterator[Shaped[np.ndarray, "height width channels"]]
Batches = Iterable[tuple[Sequence[int], Shaped[np.ndarray, "batch H W C"]]]


class SampleFiles(abc.ABC):
    """Base class of the output formats.

    Attributes:
      folder: Folder of the samples, which holds nothing else.
      count: Number of samples.
      record: Entries of the format in `settings.json`.
    """

    def __init__(
        self, outdir: Place, trained: Trained, task: Task, shard_size: int
    ) -> None:
        """Stores the arguments, without reading any file.

        Args:
          outdir: Folder of the run.
          trained: A Trained.
          task: A Task.
          shard_size: Samples per shard.
        """
        self.folder, self.count = outdir / "samples", task.count
        self._trained, self._task, self._shard_size = trained, task, shard_size
        self.record: dict[str, Any] = {}

    @abc.abstractmethod
    def missing(self, process: int, processes: int) -> tuple[int, list[Sequence[int]]]:
        """Finds the samples that a process has to draw.

        Args:
          process: Index of the process.
          processes: Their number.

        Returns:
          (count, parts): the number of the process's samples, existing or not, and the
          numbers of the missing ones, in parts that are written one after the other.

        Raises:
          ConfigError: If the folder has samples in files of another kind, e.g. from an
            older version.
        """

    @abc.abstractmethod
    def batch_size(self, asked: int, missing: int) -> int:
        """Chooses the size of batches.

        Args:
          asked: Requested batch size.
          missing: Number of missing samples.

        Returns:
          Samples at a time.
        """

    @abc.abstractmethod
    def write(self, part: Sequence[int], batches: Batches) -> None:
        """Writes a part.

        Args:
          part: Numbers of its samples.
          batches: All of them in order: (numbers, images [numbers, H, W, C]).

        Raises:
          DiskError: If it cannot be written.
        """

    def tidy(self) -> None:
        """Removes partial files of killed runs; call it when no process writes."""
        for left in self.folder.glob("*.tmp.*"):
            left.unlink()

    def images(self, count: int) -> Images:
        """Reads the first samples, one after the other.

        Args:
          count: Number of samples.

        Yields:
          Images [H, W, C] in the type of a batch, all of one size.

        Raises:
          DecodeError: If a file is damaged, or an image has another size.
        """
        shape = None
        for path, image in self._read(count):
            shape = shape or image.shape
            if image.shape != shape:
                raise DecodeError(
                    f"{path} is {image.shape[1]} x {image.shape[0]} pixels and others "
                    f"are {shape[1]} x {shape[0]}: {_REDRAW}"
                )
            yield image

    @abc.abstractmethod
    def _read(self, count):
        """Yields (path, image) of the first samples."""

    def _names(self):
        """Names of the existing files, by one listing, as object stores are slow."""
        paths = self.folder.iterdir() if is_dir(self.folder) else ()
        return {path.name for path in paths}


class Files(SampleFiles):
    """A PNG file for each sample, or `.npy` for formats that PNG cannot hold."""

    def missing(self, process: int, processes: int) -> tuple[int, list[Sequence[int]]]:
        """See SampleFiles; process p of n has samples p, p + n, ..., as one part.

        Args:
          process: Index of the process.
          processes: Their number.

        Returns:
          (count, parts).
        """
        mine, there = range(process, self.count, processes), self._names()
        self._check_kind(there)
        missing = [k for k in mine if self.path_of(k).name not in there]
        return len(mine), [missing] if missing else []

    def batch_size(self, asked: int, missing: int) -> int:
        """See SampleFiles; at most the number of missing samples.

        Args:
          asked: Requested batch size.
          missing: Number of missing samples.

        Returns:
          Samples at a time.
        """
        return min(asked, missing)

    def write(self, part: Sequence[int], batches: Batches) -> None:
        """See SampleFiles.

        Args:
          part: Numbers of its samples.
          batches: All of them in order.
        """
        del part

        def write(pair):
            write_image(self.path_of(pair[0]), pair[1], self._trained.pixels)

        for numbers, images in batches:
            pairs = list(zip(numbers, images, strict=True))
            for _ in for_each(write, pairs, self.folder):
                pass

    def path_of(self, k: int) -> Place:
        """Returns the path of a sample.

        Args:
          k: Number of the sample.

        Returns:
          Path of its file.
        """
        return self.folder / f"{k:06d}{suffix_of(self._trained.pixels)}"

    def _check_kind(self, there):
        """Raises ConfigError if there are samples with the other suffix, PNG or npy."""
        suffix = suffix_of(self._trained.pixels)
        # Files with other names are not samples.
        samples = filter(_SAMPLE.fullmatch, there)
        other = min((name for name in samples if not name.endswith(suffix)), default="")
        if other:
            raise ConfigError(
                f"{self.folder} has samples as {other[-4:]} ({other}), and these are "
                f"written as {suffix}: use another --outdir"
            )

    def _read(self, count):
        def read(k):
            path = self.path_of(k)
            try:
                return path, read_image(path, self._trained.pixels)
            except DecodeError as error:
                raise _fault(path, error) from error

        yield from for_each(read, range(count), self.folder)


class _Shards(SampleFiles):
    """Files of many samples, named by the numbers of the first and the last one."""

    suffix = ""

    def __init__(
        self, outdir: Place, trained: Trained, task: Task, shard_size: int
    ) -> None:
        super().__init__(outdir, trained, task, shard_size)
        # Recorded, as shards of different sizes must not be mixed in a folder.
        division = {"shard_size": shard_size, "num_samples": task.count}
        self.record = {"output": {"form": self.suffix, **division}}

    def missing(self, process: int, processes: int) -> tuple[int, list[Sequence[int]]]:
        """See SampleFiles; process p of n has shards p, p + n, ...

        Args:
          process: Index of the process.
          processes: Their number.

        Returns:
          (count, parts).
        """
        mine, there = self._parts()[process::processes], self._names()
        missing = [part for part in mine if self.path_of(part).name not in there]
        return sum(map(len, mine)), missing

    def batch_size(self, asked: int, missing: int) -> int:
        """See SampleFiles; it does not depend on what is missing, nor do the results.

        Args:
          asked: Requested batch size.
          missing: Number of missing samples.

        Returns:
          Samples at a time.
        """
        del missing
        return min(asked, self._shard_size)

    def _parts(self):
        size = self._shard_size
        starts = range(0, self.count, size)
        return [range(start, min(start + size, self.count)) for start in starts]

    def path_of(self, part: range) -> Place:
        """Returns the path of a shard.

        Args:
          part: Numbers of its samples.

        Returns:
          Path of the file.
        """
        return self.folder / f"{part.start:06d}-{part.stop - 1:06d}.{self.suffix}"

    def _said(self, k):
        """Class and caption of a sample, if there are any."""
        example = make_example(
            self._trained, self._task, conditions_from(self._task, k)
        )
        return {key: example[key] for key in ("label", "caption") if key in example}

    def _read(self, count):
        for part in self._parts():
            path = self.path_of(part)
            if part.start >= count:
                return
            try:
                for image in self._read_shard(path, part[: count - part.start]):
                    yield path, image
            # zip and tar raise many kinds of errors for damaged files; errors of a
            # store or a disk do not mean that the shard is damaged.
            except Exception as error:
                raise_if_silent(path, error)
                others = isinstance(error, UserError | OSError)
                if others and not isinstance(error, DecodeError | FileNotFoundError):
                    raise
                raise _fault(path, error) from error


def _fault(path, error):
    """The error for a file of samples that is missing or damaged."""
    if not exists(path):
        return DecodeError(f"{path} is gone: the same command draws it again")
    return DecodeError(f"{path} is damaged ({error}): {_REDRAW}")


class NpzShards(_Shards):
    """Shards as npz: `arr_0` [n, H, W, C], classes as `arr_1`, and captions."""

    suffix = "npz"

    def write(self, part: Sequence[int], batches: Batches) -> None:
        """See SampleFiles.

        Args:
          part: Numbers of its samples.
          batches: All of them in order.
        """
        pixels = self._trained.pixels
        images = (file_values(image, pixels) for _, some in batches for image in some)
        with (
            replacing(self.path_of(part)) as temporary,
            zipfile.ZipFile(temporary, "w") as archive,
        ):
            write_stream(archive, IMAGES, len(part), images)
            said = [self._said(k) for k in part]
            for key, name in (("label", LABELS), ("caption", "caption")):
                if all(key in row for row in said):
                    values = np.array([row[key] for row in said])
                    write_arrays(archive, {name: values})

    def _read_shard(self, path, part):
        path = local_copy(path)
        with zipfile.ZipFile(path) as archive, archive.open(f"{IMAGES}.npy") as file:
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            size = int(np.prod(shape[1:])) * dtype.itemsize
            for _ in part:
                values = np.frombuffer(file.read(size), dtype).reshape(shape[1:])
                yield from_values(values, self._trained.pixels)


class TarShards(_Shards):
    """Shards in WebDataset's layout: `.png`, and `.cls` and `.txt` beside it."""

    suffix = "tar"

    def write(self, part: Sequence[int], batches: Batches) -> None:
        """See SampleFiles.

        Args:
          part: Numbers of its samples.
          batches: All of them in order.
        """
        names, pixels = {"label": "cls", "caption": "txt"}, self._trained.pixels
        with (
            replacing(self.path_of(part)) as temporary,
            tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as archive,
        ):
            for numbers, images in batches:
                for k, image in zip(numbers, images, strict=True):
                    name = f"{k:06d}{suffix_of(pixels)}"
                    _add(archive, name, encode_image(image, pixels))
                    for key, value in self._said(k).items():
                        _add(archive, f"{k:06d}.{names[key]}", str(value).encode())

    def _read_shard(self, path, part):
        with tarfile.open(local_copy(path)) as archive:
            for k in part:
                name = f"{k:06d}{suffix_of(self._trained.pixels)}"
                data = archive.extractfile(name).read()
                yield read_image(data, self._trained.pixels)


def _add(archive, name, data):
    # Without a time, a user or a group, so that the bytes are reproducible.
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


# Value of `--output` -> class.
OUTPUTS = {"png": Files, "npz": NpzShards, "tar": TarShards}
