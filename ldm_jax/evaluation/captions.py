"""Captions of images, as token ids for CLIP's text encoder."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ldm_jax import sharding
from ldm_jax.data.inputs.caption import captions_of
from ldm_jax.data.tokenizers import load_tokenizer
from ldm_jax.errors import ConfigError, DataError
from ldm_jax.evaluation.image_sets import ImageSet
from ldm_jax.reading import read_lines
from ldm_jax.store import raise_if_silent

# Length of the token sequences of all published text encoders.
_LENGTH = 77


class OneCaption:
    """A source that keeps only the first caption of each example.

    So a sample is measured against the caption that it was drawn from.

    Attributes:
      skipped: `skipped` of the wrapped source, see `data.sources`.
    """

    def __init__(
        self,
        source: Any,
        keys: Sequence[str] = ("caption",),
        fallback: str | None = None,
    ) -> None:
        """Wraps a source.

        Args:
          source: Source of examples, see `data.sources`.
          keys: Keys of its examples that hold captions, in order of preference.
          fallback: Caption of examples without one; None makes that an error.
        """
        self._source, self._keys = source, tuple(keys)
        self._fallback, self._captions = fallback, {}
        self.skipped = getattr(source, "skipped", ())

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns the example."""
        example = dict(self._source[index])
        captions = captions_of(example, self._keys, self._fallback)
        for key in self._keys:
            example.pop(key, None)
        text = first_of(captions, self._fallback)
        if text is not None:
            example["caption"] = self._captions[index] = text
        return example

    def caption(self, index: int) -> str:
        """Returns the caption of an example, which is read at most once.

        Args:
          index: Position of the example.

        Returns:
          The caption.

        Raises:
          DataError: If the example cannot be read.
        """
        if index not in self._captions:
            try:
                self[index]
            # A damaged record or file may raise anything; the example is at fault.
            except Exception as error:
                raise_if_silent(self.describe(index), error)
                text = " ".join(str(error).split()) or type(error).__name__
                raise DataError(
                    f"cannot read the caption of {self.describe(index)}: {text}; "
                    "repair or remove it"
                ) from error
        if index not in self._captions:
            raise DataError(f"{self.describe(index)} has no caption")
        return self._captions[index]

    def describe(self, index: int) -> str:
        """Names an example, for messages.

        Args:
          index: Position of the example.

        Returns:
          The source's name for it.
        """
        return self._source.describe(index)

    def fingerprint(self) -> str:
        """Identifies the data.

        Returns:
          The fingerprint of the wrapped source.
        """
        return self._source.fingerprint()


class Prompts:
    """The captions of a file as a source of examples with blank images."""

    def __init__(self, path: str | os.PathLike) -> None:
        """Reads the file.

        Args:
          path: Path of a text file in UTF-8, one caption a line.

        Raises:
          ConfigError: If it cannot be read, or has no captions.
        """
        self._path, self._texts = path, read_captions(path)
        if not self._texts:
            raise ConfigError(f"--prompts_file={path} is empty: give a caption a line")

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns {"image": blank, "caption": text}."""
        return {"image": np.zeros((8, 8, 3), np.uint8), "caption": self.caption(index)}

    def caption(self, index: int) -> str:
        """Returns a caption.

        Args:
          index: Position of the caption.

        Returns:
          The caption.
        """
        return self._texts[index]

    def describe(self, index: int) -> str:
        """Names a caption, for messages.

        Args:
          index: Position of the caption.

        Returns:
          Its file and line.
        """
        return f"line {index + 1} of {self._path}"

    def fingerprint(self) -> str:
        """Identifies the captions.

        Returns:
          Hash of all captions.
        """
        text = "\n".join(self._texts).encode()
        return hashlib.blake2b(text, digest_size=16).hexdigest()


def first_of(
    captions: Mapping[str, Sequence[str | bytes]], fallback: str | None = None
) -> str | None:
    """Returns the first of several captions.

    Args:
      captions: Result of `captions_of`.
      fallback: Caption to use if there are none.

    Returns:
      The caption; None if there is neither a caption nor a fallback.
    """
    one = next((texts[0] for texts in captions.values()), fallback)
    return one.decode() if isinstance(one, bytes) else one


def read_captions(path: str | os.PathLike) -> list[str]:
    """Reads a file of captions, one a line.

    Args:
      path: Path of a text file in UTF-8.

    Returns:
      The captions, see `reading.split_lines`.

    Raises:
      ConfigError: If it cannot be read.
    """
    try:
        return read_lines(path)
    except (OSError, ValueError) as error:
        raise_if_silent(path, error)
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"--prompts_file: cannot read {path}: {reason}") from error


def add_captions(
    images: ImageSet, source: OneCaption | Prompts, tokenizer: str, mesh: Mesh
) -> None:
    """Adds the captions to a set of images, and records which they are.

    Args:
      images: The set; image k has caption k.
      source: The captions.
      tokenizer: Name or folder of CLIP's tokenizer, see `data.tokenizers`.
      mesh: Mesh over the devices of all processes.

    Raises:
      ConfigError: If the tokenizer cannot be loaded.
    """
    tokenize, split = load_tokenizer(tokenizer, _LENGTH), sharding.batch_sharding(mesh)

    def tokens(index):
        def ids_of(rows):
            # Each process reads the captions of its own rows.
            mine = index[rows[0]].tolist()
            return tokenize([source.caption(k) if k >= 0 else "" for k in mine])

        shape = len(index), _LENGTH
        return jax.make_array_from_callback(shape, split, ids_of)

    images.tokens = tokens
    images.record["captions"] = {
        "captions": source.fingerprint(),
        "tokenizer": tokenizer,
    }
