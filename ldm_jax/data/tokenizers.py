"""Captions to token ids, on the host."""

import copy
import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ldm_jax.annotations import Int
from ldm_jax.errors import ConfigError
from ldm_jax.store import local_copy

SHAPES_FILE = pathlib.Path(__file__).with_name("shapes") / "tokenizer.json"
PAD, UNKNOWN, START, END = "[PAD]", "[UNK]", "[START]", "[END]"

# Seconds after which the hub counts as unreachable.
_PATIENCE = 5


class Tokenizer:
    """Maps captions to ids, padded and truncated to one length; can be pickled.

    Attributes:
      max_length: Length L of the result.
      vocab_size: Number of ids.
      null_ids: First ids of the empty caption, a tuple; the last one is repeated up to
        `max_length`.
    """

    def __init__(
        self, backend: Any, max_length: int, pad_id: int | None = None
    ) -> None:
        """Wraps a tokenizer; see `load_tokenizer`.

        Args:
          backend: Tokenizer of transformers.
          max_length: Length of the token sequences.
          pad_id: Id of the padding; None for the tokenizer's own.

        Raises:
          ConfigError: If `pad_id` is not one of its ids.
        """
        self._backend, self._pad_id = backend, pad_id
        self.max_length = max_length
        self.vocab_size = len(backend)
        if pad_id is not None and not 0 <= pad_id < self.vocab_size:
            raise ConfigError(
                f"pad_id={pad_id} is not an id of the tokenizer, which go from 0 to "
                f"{self.vocab_size - 1}: give one of them, or None for its own"
            )
        empty = self([""])[0]
        last = np.flatnonzero(empty != empty[-1])
        self.null_ids = tuple(empty[: last[-1] + 2 if last.size else 1].tolist())

    def __call__(self, texts: Sequence[str | bytes]) -> Int[np.ndarray, "batch length"]:
        """Tokenizes captions, truncating those that are too long.

        Args:
          texts: List of B strings, or of bytes in UTF-8.

        Returns:
          int32 [B, max_length].

        Raises:
          ValueError: If `texts` is a single string.
        """
        if isinstance(texts, str | bytes):
            raise ValueError(f"captions must be a list, got {texts!r}: put it in one")
        texts = [t.decode() if isinstance(t, bytes) else str(t) for t in texts]
        found = self._encode(texts)
        ids = np.asarray(found["input_ids"], np.int32)
        if self._pad_id is not None:
            ids = np.where(found["attention_mask"], ids, np.int32(self._pad_id))
        return ids

    def is_too_long(self, text: str | bytes) -> bool:
        """Returns whether a caption is truncated.

        Args:
          text: The caption, str or bytes in UTF-8.

        Returns:
          Whether it has more than `max_length` tokens, start and end included.
        """
        data = text if isinstance(text, bytes) else text.encode()
        # No tokenizer makes more than a token per byte, and a few special ones.
        if len(data) + 4 <= self.max_length:
            return False
        found = self._encode([data.decode()])
        if found.encodings:
            # Requesting all tokens would change the truncation in other threads.
            return bool(found.encodings[0].overflowing)
        # Tokenizers in pure Python have no such shared state.
        whole = self._backend(data.decode(), truncation=False, verbose=False)
        return len(whole["input_ids"]) > self.max_length

    def _encode(self, texts):
        return self._backend(
            texts, padding="max_length", truncation=True, max_length=self.max_length
        )

    def save(self, folder: str | os.PathLike) -> None:
        """Saves the tokenizer so that transformers makes the same token ids with it.

        Args:
          folder: An empty folder.
        """
        backend = copy.deepcopy(self._backend)
        backend.model_max_length = self.max_length
        if self._pad_id is not None:
            backend.pad_token = backend.convert_ids_to_tokens(self._pad_id)
        backend.save_pretrained(folder)


@functools.lru_cache(maxsize=8)
def load_tokenizer(
    name: str | os.PathLike, max_length: int = 77, pad_id: int | None = None
) -> Tokenizer:
    """Loads a tokenizer; cached.

    Args:
      name: "shapes" for the one of this package, a folder, or the name of a tokenizer
        on the Hugging Face hub, such as "bert-base-uncased" (that of CompVis) or
        "openai/clip-vit-large-patch14" (Stable Diffusion 1).
      max_length: Length of the token sequences, start and end included.
      pad_id: Id of the padding; None for the tokenizer's own. 0 for the captions of
        OpenCLIP (Stable Diffusion 2), whose ids are otherwise those of OpenAI's CLIP.

    Returns:
      A Tokenizer.

    Raises:
      ConfigError: If it cannot be found, has no padding, or `pad_id` is not one of
        its ids.
    """
    import transformers  # Slow to import, and only needed with captions.

    if name == "shapes":
        backend = transformers.PreTrainedTokenizerFast(
            tokenizer_file=str(SHAPES_FILE), pad_token=PAD, unk_token=UNKNOWN
        )
        return Tokenizer(backend, max_length, pad_id)
    local = local_copy(name)
    failure = None if local.is_dir() else _hub_failure()
    try:
        backend = transformers.AutoTokenizer.from_pretrained(
            str(local) if local.is_dir() else name,
            # If the hub is unreachable, its client would retry for a minute.
            local_files_only=local.is_dir() or failure is not None,
            # Otherwise transformers asks whether to run code that comes with a folder.
            trust_remote_code=False,
        )
    # Malformed files raise nearly anything.
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise ConfigError(
                f"tokenizer {name!r} brings code of its own, which is never run: give "
                "one that transformers knows"
            ) from error
        if failure is not None:
            raise ConfigError(
                f"tokenizer {name!r} cannot be loaded: it is no folder, its files are "
                f"not in the cache of the Hugging Face hub, and the hub is out of "
                f"reach ({failure}); give a folder with tokenizer.json and "
                "tokenizer_config.json, or a name whose files are in the cache, which "
                "HF_HUB_OFFLINE=1 takes without asking the hub"
            ) from error
        raise ConfigError(
            f"tokenizer {name!r} cannot be loaded ({_first_line(error)}): give "
            "a name on the Hugging Face hub or a folder with tokenizer.json and "
            "tokenizer_config.json"
        ) from error
    if backend.pad_token is None:
        raise ConfigError(f"tokenizer {name!r} has no padding token: give another one")
    return Tokenizer(backend, max_length, pad_id)


def _hub_failure():
    """Why the hub is unreachable, including HF_HUB_OFFLINE; None if it is reachable."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=_PATIENCE)
    # Which library its errors come from depends on the version of its client.
    except Exception as error:
        return _first_line(error)
    return None


def _first_line(error):
    return str(error).strip().partition("\n")[0] or type(error).__name__
