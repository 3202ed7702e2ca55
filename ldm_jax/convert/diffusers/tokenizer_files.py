"""The files of a tokenizer, as saved by transformers."""

import tempfile
from collections.abc import Mapping
from typing import Any

from ldm_jax.data.tokenizers import load_tokenizer
from ldm_jax.errors import UserError
from ldm_jax.store import as_path


def tokenizer_files(section: Mapping[str, Any]) -> dict[str, bytes]:
    """Saves the tokenizer of a caption.

    Args:
      section: Its entry of the config section `data.inputs`.

    Returns:
      "tokenizer/..." -> the file's bytes; {} if the tokenizer is not available.
    """
    name = section["tokenizer"]
    options = {key: section[key] for key in ("max_length", "pad_id") if key in section}
    try:
        tokenizer = load_tokenizer(name, **options)
    except UserError:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder)
        found = sorted(path for path in as_path(folder).iterdir())
        return {f"tokenizer/{path.name}": path.read_bytes() for path in found}
