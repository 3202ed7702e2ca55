"""The input `caption`: token ids of one of an example's captions."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ldm_jax.data.inputs.kind import Input, require
from ldm_jax.data.tokenizers import load_tokenizer

# Default number of tokens: that of CLIP.
MAX_LENGTH = 77


class Caption(Input):
    """Token ids of a caption, int32 [max_length].

    If an example has several captions, one is drawn: first one of those `keys` that the
    example has, by `weights`, then one of that key's captions. Captions that are too
    long are truncated.

    Attributes:
      tokenizer: The Tokenizer, with `vocab_size`, `max_length` and `null_ids`.
      fallback: Caption of examples that have none, or None.
    """

    ways = (("caption",),)

    def __init__(
        self,
        tokenizer: str,
        max_length: int = MAX_LENGTH,
        pad_id: int | None = None,
        keys: Sequence[str] = ("caption",),
        weights: Sequence[float] = (),
        dropout: float = 0.0,
        fallback: str | None = None,
    ) -> None:
        """Loads the tokenizer.

        Args:
          tokenizer: Its name; see `tokenizers.load_tokenizer`.
          max_length: Number of tokens.
          pad_id: Id of the padding; None for the tokenizer's own.
          keys: Keys of the example that hold captions.
          weights: Relative frequency of each key; by default all are equally frequent.
          dropout: Fraction of the training examples whose caption is replaced by the
            empty one.
          fallback: Caption of examples that have none; None raises an error for them.
        """
        require(
            len(weights) in (0, len(keys)) and len(set(keys)) == len(keys) > 0,
            f"keys={tuple(keys)} and weights={tuple(weights)}: give different keys, "
            "and a weight for each, or no weights",
        )
        require(
            all(weight > 0 for weight in weights),
            f"weights must be above 0, got {tuple(weights)}: leave out the keys that "
            "are never to be drawn",
        )
        require(0 <= dropout < 1, f"dropout must be in [0, 1), got {dropout}")
        self.tokenizer = load_tokenizer(tokenizer, max_length, pad_id)
        self.needs = tuple(keys)
        lenient = fallback is not None or len(keys) > 1
        self.optional = self.needs if lenient else ()
        self._weights = dict(zip(keys, weights or [1.0] * len(keys), strict=True))
        self._dropout, self.fallback = dropout, fallback

    def _held_out(self):
        held_out = copy.copy(self)
        held_out._dropout = 0.0
        return held_out

    def _drops(self):
        return self._dropout > 0

    def _drop(self, value, rng, nothing):
        if self._dropout and rng.random() < self._dropout:
            return self.tokenizer([""])[0] if nothing is None else nothing
        return value

    def _missing(self, example):
        there = self.fallback is not None or self._captions(example)
        return None if there else self.needs[0]

    def _captions(self, example):
        """Key -> captions, of the keys that the example has."""
        found = captions_of(example, self.needs, self.fallback)
        # Flags and files of prompts store it under this key, whatever the data's keys.
        return found or captions_of(example, ("caption",))

    def _make(self, example, rng):
        captions = self._captions(example)
        if self._dropout and rng.random() < self._dropout:
            return self.tokenizer([""])[0]
        if not captions:
            return self.tokenizer([self.fallback])[0]
        keys, at = list(captions), 0
        if len(keys) > 1:
            ends = np.cumsum([self._weights[key] for key in keys])
            at = np.searchsorted(ends[:-1], rng.random() * ends[-1], "right")
        texts = captions[keys[at]]
        # A single caption needs no generator.
        text = texts[0] if len(texts) == 1 else texts[rng.integers(len(texts))]
        return self.tokenizer([text])[0]

    def _is_truncated(self, example, value):
        texts = sum(self._captions(example).values(), [])
        return any(
            self.tokenizer.is_too_long(text)
            and np.array_equal(self.tokenizer([text])[0], value)
            for text in texts
        )


def captions_of(
    example: Mapping[str, Any],
    keys: Sequence[str],
    fallback: str | None = None,
) -> dict[str, list[str | bytes]]:
    """Finds the captions of an example.

    Args:
      example: Key -> text, a list of texts, or None.
      keys: Keys that hold captions.
      fallback: Replacement for missing captions, or None.

    Returns:
      Key -> captions, of the keys that have any. Blank ones only count if there is no
      fallback and no other caption.

    Raises:
      ValueError: If one is not text.
    """
    found = {key: _texts(example.get(key)) for key in keys}
    full = {key: [t for t in texts if t.strip()] for key, texts in found.items()}
    if fallback is not None or any(full.values()):
        found = full
    return {key: texts for key, texts in found.items() if texts}


def _texts(captions):
    """Captions of a key as a list, without missing ones."""
    if captions is None:
        return []
    if isinstance(captions, str | bytes):
        return [captions]
    if not isinstance(captions, list | tuple | np.ndarray) or np.ndim(captions) == 0:
        raise ValueError(f"a caption is {captions!r}, which is no text")
    texts = [text for text in captions if text is not None]
    for text in texts:
        if not isinstance(text, str | bytes):
            raise ValueError(f"a caption is {text!r}, which is no text")
    return texts
