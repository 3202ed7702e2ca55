"""Captions of images, as the token ids that CLIP's text tower takes."""

import hashlib
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ldm_jax import sharding
from ldm_jax.annotations import Int
from ldm_jax.data.tokenizers import load_tokenizer
from ldm_jax.errors import ConfigError
from ldm_jax.reading import MAX_TEXT, read_file

# Length of the token sequences of all published towers.
_LENGTH = 77


class OneCaption:
    """A source whose examples have one caption each, the first of theirs.

    So a sample is measured by the caption that it was drawn from.
    """

    def __init__(self, source: Any) -> None:
        """Wraps a source.

        Args:
          source: Source of examples, see `data.sources`.
        """
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns the example."""
        example = dict(self._source[index])
        if "caption" in example:
            example["caption"] = first_of(example["caption"])
        return example

    def describe(self, index: int) -> str:
        """Names an example, for messages.

        Args:
          index: Its position.

        Returns:
          What the source calls it.
        """
        return self._source.describe(index)

    def fingerprint(self) -> str:
        """Tells this data from others.

        Returns:
          What the source says.
        """
        return self._source.fingerprint()


class Prompts:
    """The captions of a file as a source of examples, with images that are blank."""

    def __init__(self, path: str | os.PathLike) -> None:
        """Reads the file.

        Args:
          path: Path of a text file in UTF-8, a caption in a line.

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
        return {"image": np.zeros((8, 8, 3), np.uint8), "caption": self._texts[index]}

    def describe(self, index: int) -> str:
        """Names a caption, for messages.

        Args:
          index: Its position.

        Returns:
          File and line.
        """
        return f"line {index + 1} of {self._path}"

    def fingerprint(self) -> str:
        """Tells these captions from others.

        Returns:
          Hash of them.
        """
        text = "\n".join(self._texts).encode()
        return hashlib.blake2b(text, digest_size=16).hexdigest()


def first_of(captions: Any) -> str:
    """Takes the first of several captions.

    Args:
      captions: A text, or several.

    Returns:
      The text.
    """
    one = captions if isinstance(captions, str | bytes) else captions[0]
    return one.decode() if isinstance(one, bytes) else str(one)


def read_captions(path: str | os.PathLike) -> list[str]:
    """Reads a file of captions, one in a line.

    Args:
      path: Path of a text file in UTF-8.

    Returns:
      The captions.

    Raises:
      ConfigError: If it cannot be read.
    """
    try:
        text = read_file(path, MAX_TEXT).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"--prompts_file: cannot read {path}: {reason}") from error
    return text.splitlines()


def make_tokens(
    caption_of: Callable[[int], str], count: int, tokenizer: str, mesh: Mesh
) -> Callable[[Int[np.ndarray, " batch"]], Any]:
    """Makes the function that gives the captions of a batch.

    Args:
      caption_of: Number of an image -> its caption.
      count: Number of images; numbers beyond have the empty caption.
      tokenizer: Name or folder of CLIP's tokenizer, see `data.tokenizers`.
      mesh: Mesh over the devices of all processes.

    Returns:
      Function of the numbers of a batch's images, int [B] -> global array of token ids,
      int32 [B, 77], split along axis 0.

    Raises:
      ConfigError: If the tokenizer cannot be loaded.
    """
    tokenize = load_tokenizer(tokenizer, _LENGTH)
    split = sharding.batch_sharding(mesh)

    def tokens(index):
        texts = [caption_of(int(k)) if k < count else "" for k in index]
        ids = tokenize(texts)
        return jax.make_array_from_callback(ids.shape, split, lambda rows: ids[rows])

    return tokens
