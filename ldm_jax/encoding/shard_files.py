"""The shards of a set on disk: fixed ranges of the examples, each written atomically.

A shard is complete once its file and its part, a small JSON file with its statistics,
exist. So a resumed command makes the missing shards, and the set is bit for bit the
same. The header is made from the parts, which are then removed.
"""

import json
import os
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ldm_jax.annotations import Int
from ldm_jax.data.encoded import MEAN, STD, Header, RecordFormat
from ldm_jax.data.encoded.header import FILE
from ldm_jax.encoding.stream import Encoded
from ldm_jax.errors import ConfigError, DataError
from ldm_jax.files import remove_folder, replacing, write_json, writing
from ldm_jax.sampling.settings import first_difference
from ldm_jax.store import Place, exists, is_file, raise_if_silent

_SETTINGS, _PARTS = "settings.json", "parts"

# Each record can be read on its own, and latents do not compress.
_FORM = "group_size:1,uncompressed"

# Seconds to wait for another process's file on a shared disk.
_SEEN = 10.0

# Number of examples that could not be read that are listed by name.
_LISTED = 1000


class ShardFiles:
    """The folder of a set that is being written."""

    def __init__(
        self,
        folder: Place,
        settings: Mapping[str, Any],
        count: int,
        shard_size: int,
    ) -> None:
        """Stores the settings, without reading the folder.

        Args:
          folder: Folder of the set.
          settings: JSON-like dict of everything that the contents of the set depend on.
          count: Number of examples.
          shard_size: Examples per shard.
        """
        self.folder, self.count, self.shard_size = folder, count, shard_size
        self._settings = json.loads(json.dumps(settings))
        self.shards = range(-(-count // shard_size))

    def begin(self) -> bool:
        """Checks what exists, and removes partial files of a killed command.

        Returns:
          Whether the set is finished.

        Raises:
          ConfigError: If the folder holds a set of other settings.
          DiskError: If it cannot be written.
        """
        path = self.folder / _SETTINGS
        if exists(path):
            self._compare(_read_json(path))
            if self._is_finished():
                remove_folder(self.folder / _PARTS)
                return True
        elif exists(self.folder / FILE):
            raise ConfigError(
                f"{self.folder} holds a set of latents, but no {_SETTINGS}, which says "
                "of which settings it is: use another --outdir, or remove it"
            )
        with writing(self.folder):
            (self.folder / _PARTS).mkdir(parents=True, exist_ok=True)
            for left in [*self.folder.glob("*.tmp.*"), *self.folder.glob("*/*.tmp.*")]:
                left.unlink()
        write_json(path, self._settings)
        return False

    def _is_finished(self):
        """Whether the header and its files are intact; if not, removes the header."""
        path = self.folder / FILE
        if not exists(path):
            return False
        try:
            problem = Header.read(self.folder).problem_with_files(self.folder)
        except ValueError as error:
            problem = str(error).removesuffix(": encode the data again")
        if problem is None:
            return True
        print(f"{problem}: {self.folder} is encoded again")
        with writing(path):
            path.unlink()
        return False

    def has_begun(self) -> bool:
        """Waits for the file that `begin` writes, which shows that the disk is shared.

        Returns:
          Whether it exists; on a shared disk this may take some seconds.
        """
        path, end = self.folder / _SETTINGS, time.monotonic() + _SEEN
        while not is_file(path):
            if time.monotonic() > end:
                return False
            time.sleep(0.1)
        return True

    def _compare(self, theirs):
        other = first_difference(theirs, self._settings)
        if other is not None:
            key, there, here = other
            raise ConfigError(
                f"{self.folder} holds latents of other settings ({key}: {there} there, "
                f"{here} here): use another --outdir, or remove that one"
            )

    def range_of(self, shard: int) -> range:
        """Returns the positions of the examples of a shard.

        Args:
          shard: Its number.

        Returns:
          A range.
        """
        first = shard * self.shard_size
        return range(first, min(first + self.shard_size, self.count))

    def padded(self, shard: int, batch_size: int) -> Int[np.ndarray, " count"]:
        """Returns `range_of` padded to whole batches, so that none spans two shards.

        Args:
          shard: Its number.
          batch_size: Rows of a batch.

        Returns:
          int64 [n batch_size]; the last position is repeated.
        """
        found = self.range_of(shard)
        size = -(-len(found) // batch_size) * batch_size
        return np.minimum(np.arange(found.start, found.start + size), found.stop - 1)

    def is_there(self, shard: int) -> bool:
        """Returns whether a shard is complete.

        Args:
          shard: Its number.

        Returns:
          Whether its file and its part exist.
        """
        return is_file(self._file(shard)) and is_file(self._part(shard))

    def _file(self, shard):
        name = f"latents-{shard:05d}-of-{len(self.shards):05d}.array_record"
        return self.folder / name

    def _part(self, shard):
        return self.folder / _PARTS / f"{shard:05d}.json"

    def write(self, shard: int, batches: Iterable[Encoded], source: Any) -> None:
        """Writes a shard.

        Args:
          shard: Its number.
          batches: Its examples, padded as by `padded`.
          source: Source of the examples, for their names.

        Raises:
          ConfigError: If a value is not an array of numbers, or examples have different
            types or shapes.
          DiskError: If it cannot be written, from an OSError; also if the disk is full,
            which array_record's writer does not report.
        """
        from array_record.python import array_record_module

        places, part = self.range_of(shard), _Part()
        with replacing(self._file(shard)) as temporary:
            writer = array_record_module.ArrayRecordWriter(str(temporary), _FORM)
            at = places.start
            for batch in batches:
                for row in range(min(len(batch.mask), places.stop - at)):
                    key = source.describe(at)
                    at += 1
                    if batch.mask[row]:
                        for copy in batch.copies:
                            writer.write(part.add(copy, row, key))
                        part.shortened += key in batch.shortened
                    else:
                        part.skip(key, batch.skipped.get(key, ""))
                part.cut.update(batch.cut)
            writer.close()
            if not writer_is_whole(temporary, part.records):
                raise OSError(28, os.strerror(28))
            part.bytes = temporary.stat().st_size
        write_json(self._part(shard), part.to_json())

    def finish(self, facts: Mapping[str, Any]) -> Header:
        """Writes the header made from the parts, and removes these.

        Args:
          facts: Fields of Header that do not come from the shards.

        Returns:
          The Header.

        Raises:
          DataError: If no example could be read.
          ConfigError: If shards have different fields.
        """
        parts = [_read_json(self._part(shard)) for shard in self.shards]
        records = sum(part["records"] for part in parts)
        if not records:
            raise DataError(f"none of the {self.count} examples can be read")
        forms = [part["fields"] for part in parts if part["records"]]
        for form in forms:
            if form != forms[0]:
                raise ConfigError(
                    "examples give arrays of different shapes, which one set cannot "
                    f"hold: {forms[0]} and {form}"
                )
        skipped = [row for part in parts for row in part["skipped"]]
        header = Header(
            count=records // (2 if facts["mirrored"] else 1),
            fields=forms[0],
            shards=[
                {
                    "file": self._file(shard).name,
                    **{key: part[key] for key in ("records", "bytes", "crc32")},
                }
                for shard, part in zip(self.shards, parts, strict=True)
            ],
            statistics=_statistics(parts),
            skipped={"count": len(skipped), "examples": skipped[:_LISTED]},
            shortened=sum(part["shortened"] for part in parts),
            cut=dict(sum((Counter(part["cut"]) for part in parts), Counter())),
            **facts,
        )
        write_json(self.folder / FILE, header.to_json())
        remove_folder(self.folder / _PARTS)
        return header


def writer_is_whole(path: Place, records: int) -> bool:
    """Returns whether a shard was written completely, which its writer does not check.

    Args:
      path: The file.
      records: Expected number of records.

    Returns:
      Whether it has that many records.
    """
    from array_record.python import array_record_module

    try:
        reader = array_record_module.ArrayRecordReader(str(path))
        return reader.num_records() == records
    # The reader may raise anything if the file is cut short.
    except Exception:
        return False


def _read_json(path):
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__}")
        return found
    except (OSError, ValueError) as error:
        raise_if_silent(path, error)
        raise DataError(
            f"{path}, which a cut command has left, cannot be read ({error}): "
            f"remove {path.parent} to start over"
        ) from error


class _Part:
    """Counts and sums over the examples of a shard."""

    def __init__(self):
        self.records, self.bytes, self.shortened, self.cut = 0, 0, 0, Counter()
        self._crc32, self._values, self._skipped = 0, 0, []
        self._format, self._sum, self._square = None, 0.0, 0.0

    def add(self, batch, row, key):
        """Counts a row of a batch of arrays [B, ...]; returns its record, in bytes.

        Raises ConfigError if its types or shapes differ from those before, or cannot be
        stored in records.
        """
        example = {name: np.asarray(values[row]) for name, values in batch.items()}
        moments = {k: example.pop(k) for k in (MEAN, STD) if k in example}
        example = moments | dict(sorted(example.items()))
        try:
            self._format = self._format or RecordFormat.of(example)
            record = self._format.pack(example, key)
        except ValueError as error:
            raise ConfigError(f"{key}: {error}") from error
        self.records += 1
        self._crc32 = zlib.crc32(record, self._crc32)
        # Of the stored values, as these are the training data.
        mean = np.asarray(moments[MEAN], np.float64)
        variance = np.square(np.asarray(moments.get(STD, 0), np.float64))
        self._values += mean[..., 0].size
        self._sum = self._sum + mean.sum(axis=(0, 1))
        self._square = self._square + (mean**2 + variance).sum(axis=(0, 1))
        return record

    def skip(self, key, reason):
        """Notes an example that could not be read, and why."""
        self._skipped.append([key, reason])

    def to_json(self):
        """Makes a dict of counts, checksum, fields, and sums of latents by channel."""
        return {
            "records": self.records,
            "bytes": self.bytes,
            "shortened": self.shortened,
            "cut": self.cut,
            "crc32": f"{self._crc32:08x}",
            "fields": self._format and self._format.to_json(),
            "values": self._values,
            "sum": np.asarray(self._sum).tolist(),
            "square": np.asarray(self._square).tolist(),
            "skipped": self._skipped,
        }


def _statistics(parts):
    """Expected mean and standard deviation of samples of the posteriors.

    Nothing is sampled: the posterior's variance is added to that of the means.
    """
    parts = [part for part in parts if part["records"]]
    values = sum(part["values"] for part in parts)
    mean, square = (
        np.sum([part[key] for part in parts], axis=0) / values
        for key in ("sum", "square")
    )
    std = np.sqrt(np.maximum(square - mean**2, 0.0))
    overall = mean.mean()
    spread = np.sqrt(max(square.mean() - overall**2, 0.0))
    return {
        "mean": mean.tolist(),
        "std": std.tolist(),
        "overall_mean": float(overall),
        "overall_std": float(spread),
    }
