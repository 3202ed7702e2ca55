"""The header of a set of latents: its data, first stage, settings and statistics."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

from ldm_jax.data.encoded.record import MEAN, STD, RecordFormat
from ldm_jax.errors import ConfigError
from ldm_jax.store import as_path, is_file, raise_if_silent, size_of

FILE = "latents.json"

# Beside it: "KEY/null" and "KEY/empty" -> text states [L, D] of the null input, and of
# the empty caption that replaces dropped ones.
EMPTY = "empty_captions.npz"

# Changes whenever the form of the header or the records does.
VERSION = 1


@dataclasses.dataclass(frozen=True)
class Header:
    """The contents of the JSON file of a set.

    Attributes:
      version: VERSION of the code that wrote it.
      count: Number of images; a mirrored copy does not count.
      mirrored: Whether each record is followed by that of the mirrored image.
      fields: Result of `RecordFormat.to_json`.
      shards: List of {"file", "records", "bytes", "crc32"} in order: the file's size,
        which is checked whenever the set is opened, and the checksum of its
        concatenated records, which is part of `fingerprint`.
      num_classes: Number of classes, or None.
      class_names: Their names, or None.
      first_stage: Record of the first stage, with "kind" and "checksum".
      statistics: {"mean", "std"} of each channel, {"overall_mean", "overall_std"} of
        all values: of samples of the posterior, in float64.
      data: The config section `data` that was encoded, without "inputs".
      inputs: Its "inputs".
      source: {"num_examples", "fingerprint"} of the data.
      skipped: {"count", "examples": [[where, why], ...]}, where only some are listed.
      shortened: Number of examples of which a part was left out.
      cut: Input -> number of examples that it truncated.
      written_by: Version of the package.
      text_states: Batch key -> {"checksum"} of the frozen text tower whose states are
        stored with the token ids, and for empty captions in EMPTY beside this file.
    """

    version: int
    count: int
    mirrored: bool
    fields: list
    shards: list
    num_classes: int | None
    class_names: list | None
    first_stage: Mapping[str, Any]
    statistics: Mapping[str, Any]
    data: Mapping[str, Any]
    inputs: Mapping[str, Any]
    source: Mapping[str, Any]
    skipped: Mapping[str, Any]
    shortened: int
    cut: Mapping[str, int]
    written_by: str
    text_states: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def read(cls, folder: str | os.PathLike) -> "Header":
        """Reads the header of a set.

        Args:
          folder: Folder of the set.

        Returns:
          A Header.

        Raises:
          ValueError: If there is none, it is damaged, or of another version.
        """
        path = as_path(folder) / FILE
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            version = found["version"]
            if version != VERSION:
                raise ValueError(
                    f"{path} is of version {version} and this code reads {VERSION}: "
                    "encode the data again"
                )
            known = {field.name for field in dataclasses.fields(cls)}
            # Headers of older versions have none.
            found = {"text_states": {}} | found
            return cls(**{key: found[key] for key in known})
        except OSError as error:
            reason = error.strerror or error
            raise ValueError(f"cannot read {path}: {reason}") from error
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{path} is damaged ({type(error).__name__}: {error}): encode the "
                "data again"
            ) from error

    def to_json(self) -> dict[str, Any]:
        """Makes the contents of the file.

        Returns:
          JSON-like dict.
        """
        found = dataclasses.asdict(self)
        if not self.text_states:
            # As in older versions, so that their sets keep their fingerprints.
            del found["text_states"]
        return found

    @property
    def record_format(self) -> RecordFormat:
        """The layout of the records."""
        return RecordFormat.from_json(self.fields)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(h, w, c) of the latents."""
        shapes = {name: tuple(shape) for name, _, shape in self.fields}
        return shapes[MEAN]

    def problem_with_files(self, folder: str | os.PathLike) -> str | None:
        """Checks that all files exist and that shards have the sizes of the header.

        Args:
          folder: Folder of the set.

        Returns:
          Description of the first problem; None if there is none.
        """
        empty = as_path(folder) / EMPTY
        if self.text_states and not is_file(empty):
            return f"{empty} is missing, the text states of the empty caption"
        for shard in self.shards:
            path = as_path(folder) / shard["file"]
            try:
                size = size_of(path)
            except OSError as error:
                raise_if_silent(path, error)
                return f"{path} is missing, which the header of the set names"
            if size != shard["bytes"]:
                return (
                    f"{path} has {size:,} bytes and not {shard['bytes']:,}, as the "
                    "header of the set says"
                )
        return None

    def fingerprint(self) -> str:
        """Identifies the set, including the checksums of its shards.

        Returns:
          Hash of the header.
        """
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def require_alike(self, other: "Header", key: str) -> None:
        """Checks that another set can be used with this one in a run.

        Args:
          other: Header of the other set.
          key: Config key or flag of the other set, for the message.

        Raises:
          ConfigError: If another first stage or text tower made it, or its records have
            other fields; the latents' type may differ.
        """
        mine, theirs = self.first_stage, other.first_stage
        if theirs["checksum"] != mine["checksum"]:
            raise ConfigError(
                f"{key}: step {theirs['step']} of {theirs['workdir']} made its latents "
                f"(checksum {theirs['checksum']}), and step {mine['step']} of "
                f"{mine['workdir']} those of data.split (checksum {mine['checksum']}): "
                "encode one of them again"
            )
        for name, tower in self.text_states.items():
            if other.text_states.get(name) != tower:
                raise ConfigError(
                    f"{key}: another text tower made its states of {name}, or none: "
                    "encode both with one command"
                )
        mine, theirs = _contents(self.fields), _contents(other.fields)
        for name in sorted({*mine, *theirs}):
            here, there = mine.get(name, "nothing"), theirs.get(name, "nothing")
            if here != there:
                raise ConfigError(
                    f"{key}: as {name} its records hold {there}, and those of "
                    f"data.split {here}: encode both with one command"
                )

    def require_first_stage(self, record: Mapping[str, Any], key: str) -> None:
        """Checks that a first stage is the one that made the latents.

        Args:
          record: Record of a first stage, see `trained.FirstStage`.
          key: Config key or flag of the first stage, for the message.

        Raises:
          ConfigError: If it is another one.
        """
        mine = self.first_stage
        if record.get("checksum") != mine["checksum"]:
            raise ConfigError(
                f"{key}={record['workdir']}, step {record['step']}, makes other "
                f"latents than those of data.name, which step {mine['step']} of "
                f"{mine['workdir']} made (checksum {mine['checksum']}, "
                f"not {record.get('checksum')}): give that one, or encode again"
            )


def _contents(fields):
    """Name -> type and shape in records; the type of latents does not count."""
    latents = {MEAN, STD}
    return {
        name: f"{'latents' if name in latents else dtype} {list(shape)}"
        for name, dtype, shape in fields
    }
