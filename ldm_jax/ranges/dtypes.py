"""Compute types, by the names that people use."""

from typing import Any

from ldm_jax.ranges.checks import Check, is_real

# What people write -> the name of the type that they mean.
_DTYPES = {
    "float32": "float32 f32 fp32 float single",
    "bfloat16": "bfloat16 bf16",
    "float16": "float16 f16 fp16 half",
}

_DTYPE_OF = {word: name for name, words in _DTYPES.items() for word in words.split()}


def dtype_name(value: Any) -> Any:
    """Gives a compute type its usual name.

    Args:
      value: Name, as "bfloat16", "bf16" or "torch.bfloat16"; or a type.

    Returns:
      "float32", "bfloat16" or "float16"; what is neither a string nor known, as it is.
    """
    if not isinstance(value, str):
        return value
    word = value.strip().lower()
    word = word.removeprefix("torch.").removeprefix("jnp.").removeprefix("np.")
    return _DTYPE_OF.get(word, value)


def _is_dtype(value):
    # A type itself is what code gives.
    if isinstance(value, str):
        return dtype_name(value) in _DTYPES
    return value is not None and not is_real(value)


DTYPE = Check("a compute type: " + ", ".join(_DTYPES), _is_dtype)
