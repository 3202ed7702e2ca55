"""The tokenizer of the captions of `shapes`.

    python -m ldm_jax.data.shapes.tokenizer

writes `tokenizer.json`. It is stored rather than made when needed, as trained weights
depend on its ids.
"""

from typing import Any

from ldm_jax.data.shapes import captions
from ldm_jax.data.tokenizers import END, PAD, SHAPES_FILE, START, UNKNOWN


def make_shapes_tokenizer() -> Any:
    """Makes the tokenizer of `shapes`: one id per word, start and end around them.

    Returns:
      A `tokenizers.Tokenizer`.
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, normalizers, pre_tokenizers, processors

    words = [PAD, UNKNOWN, START, END, *captions.vocabulary()]
    ids = {word: i for i, word in enumerate(words)}
    backend = Backend(models.WordLevel(ids, unk_token=UNKNOWN))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(t, ids[t]) for t in (START, END)]
    )
    backend.add_special_tokens([PAD, UNKNOWN, START, END])
    return backend


if __name__ == "__main__":
    make_shapes_tokenizer().save(str(SHAPES_FILE))
    print(f"wrote {SHAPES_FILE}")
