"""Names of compute types, with common aliases."""

from typing import Any

from ldm_jax.ranges.checks import Check, is_real

# Name of a compute type -> its aliases.
_DTYPES = {
    "float32": "float32 f32 fp32 float single",
    "bfloat16": "bfloat16 bf16",
    "float16": "float16 f16 fp16 half",
}

_DTYPE_OF = {word: name for name, words in _DTYPES.items() for word in words.split()}


def dtype_name(value: Any) -> Any:
    """Normalises the name of a compute type.

    Args:
      value: Name, e.g. "bfloat16", "bf16" or "torch.bfloat16"; or a type.

    Returns:
      "float32", "bfloat16" or "float16"; other values are returned unchanged.
    """
    if not isinstance(value, str):
        return value
    word = value.strip().lower()
    word = word.removeprefix("torch.").removeprefix("jnp.").removeprefix("np.")
    return _DTYPE_OF.get(word, value)


def _is_dtype(value):
    # Code may pass a type itself.
    if isinstance(value, str):
        return dtype_name(value) in _DTYPES
    return value is not None and not is_real(value)


DTYPE = Check("a compute type: " + ", ".join(_DTYPES), _is_dtype)
