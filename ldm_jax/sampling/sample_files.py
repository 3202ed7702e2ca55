"""How samples lie in a folder: a PNG file each, or many in shards as npz or tar.

A file appears once it is whole, so that what is there is finished; a run that was cut
goes on with what is missing. A shard holds a fixed range of the samples, drawn in
batches of its own: its bytes depend on no process and on no cut.
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

_ANEW = "take it away, and the same command draws it anew"

# Names of samples in files of their own.
_SAMPLE = re.compile(r"\d{6,}\.(png|npy)")

# Images as an iterator gives them, and batches of (numbers of samples, images).
Images = Iterator[Shaped[np.ndarray, "height width channels"]]
Batches = Iterable[tuple[Sequence[int], Shaped[np.ndarray, "batch H W C"]]]


class SampleFiles(abc.ABC):
    """What all forms have in common.

    Attributes:
      folder: Folder of the samples, alone in it.
      count: Number of samples.
      record: What of it belongs into `settings.json`.
    """

    def __init__(
        self, outdir: Place, trained: Trained, task: Task, shard_size: int
    ) -> None:
        """Looks at nothing yet.

        Args:
          outdir: Folder of the run.
          trained: A Trained.
          task: A Task.
          shard_size: Samples of a shard.
        """
        self.folder, self.count = outdir / "samples", task.count
        self._trained, self._task, self._shard_size = trained, task, shard_size
        self.record: dict[str, Any] = {}

    @abc.abstractmethod
    def missing(self, process: int, processes: int) -> tuple[int, list[Sequence[int]]]:
        """Finds what a process has to draw.

        Args:
          process: Index of the process.
          processes: Their number.

        Returns:
          (count, parts): how many samples are its own, there or not, and the numbers of
          those that are not, in parts that are written one after the other.

        Raises:
          ConfigError: If samples lie there in files of another kind, as an older
            version wrote them.
        """

    @abc.abstractmethod
    def batch_size(self, asked: int, missing: int) -> int:
        """Chooses the size of batches.

        Args:
          asked: Samples at a time that are asked for.
          missing: How many are missing.

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
        """Removes what killed runs have half written, once no process writes."""
        for left in self.folder.glob("*.tmp.*"):
            left.unlink()

    def images(self, count: int) -> Images:
        """Reads the first samples, one after the other.

        Args:
          count: How many.

        Yields:
          Images [H, W, C] in the type of a batch, all of one size.

        Raises:
          DecodeError: If a file is damaged or an image of another size.
        """
        shape = None
        for path, image in self._read(count):
            shape = shape or image.shape
            if image.shape != shape:
                raise DecodeError(
                    f"{path} is {image.shape[1]} x {image.shape[0]} pixels and others "
                    f"are {shape[1]} x {shape[0]}: {_ANEW}"
                )
            yield image

    @abc.abstractmethod
    def _read(self, count):
        """Yields (path, image) of the first samples."""

    def _names(self):
        """Names of the files that are there; one look, as stores are far."""
        paths = self.folder.iterdir() if is_dir(self.folder) else ()
        return {path.name for path in paths}


class Files(SampleFiles):
    """A PNG file for each sample, or `.npy` of what PNG cannot hold."""

    def missing(self, process: int, processes: int) -> tuple[int, list[Sequence[int]]]:
        """See SampleFiles; a process has every so-manieth sample, as one part.

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
        """See SampleFiles; no larger than what is missing.

        Args:
          asked: Samples at a time that are asked for.
          missing: How many are missing.

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
        """Says where a sample is written.

        Args:
          k: Number of the sample.

        Returns:
          Path of its file.
        """
        return self.folder / f"{k:06d}{suffix_of(self._trained.pixels)}"

    def _check_kind(self, there):
        """Refuses PNG where now `.npy` is written, or the other way round."""
        suffix = suffix_of(self._trained.pixels)
        # Whatever else lies there is nobody's sample.
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
    """Files of many samples, which end with the numbers of the first and the last."""

    suffix = ""

    def __init__(
        self, outdir: Place, trained: Trained, task: Task, shard_size: int
    ) -> None:
        super().__init__(outdir, trained, task, shard_size)
        # Another division would leave shards of both behind.
        division = {"shard_size": shard_size, "num_samples": task.count}
        self.record = {"output": {"form": self.suffix, **division}}

    def missing(self, process: int, processes: int) -> tuple[int, list[Sequence[int]]]:
        """See SampleFiles; a process has every so-manieth shard.

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
        """See SampleFiles; the same whatever is missing: no digit depends on it.

        Args:
          asked: Samples at a time that are asked for.
          missing: How many are missing.

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
        """Says where a shard is written.

        Args:
          part: Numbers of its samples.

        Returns:
          Path of the file.
        """
        return self.folder / f"{part.start:06d}-{part.stop - 1:06d}.{self.suffix}"

    def _said(self, k):
        """Class and caption of a sample, as far as there are any."""
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
            # What zip and tar raise of damaged files is of many kinds; what a store or
            # a disk raises says nothing of the shard.
            except Exception as error:
                raise_if_silent(path, error)
                others = isinstance(error, UserError | OSError)
                if others and not isinstance(error, DecodeError | FileNotFoundError):
                    raise
                raise _fault(path, error) from error


def _fault(path, error):
    """What is wrong with a file of samples."""
    if not exists(path):
        return DecodeError(f"{path} is gone: the same command draws it anew")
    return DecodeError(f"{path} is damaged ({error}): {_ANEW}")


class NpzShards(_Shards):
    """Shards as npz: `arr_0` uint8 [n, H, W, C], and classes as `arr_1`, captions."""

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
    # Without a time, a user or a group, which would have bytes differ.
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


# What `--output` may be.
OUTPUTS = {"png": Files, "npz": NpzShards, "tar": TarShards}
