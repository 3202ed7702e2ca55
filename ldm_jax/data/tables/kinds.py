"""Kinds of columns, independent of which Arrow type stores them.

Files of one set may come from several writers: text is `string`, `large_string` or a
dictionary of them, whole numbers have 8 to 64 bits.
"""

from collections.abc import Sequence
from typing import Any

TEXT, BYTES, WHOLE, REAL, TRUTH, NULL = (
    *("text", "bytes", "whole numbers", "numbers", "truth values", "null"),
)

# Kinds that can be columns of metadata and be compared.
SCALARS = (TEXT, WHOLE, REAL, TRUTH)


def kind_of(held: Any) -> str:
    """Returns the kind of an Arrow type.

    Args:
      held: The type.

    Returns:
      One of the names above, or "lists of ..." or "structs of ..." with them; for any
      other type its name.
    """
    import pyarrow.types as is_

    if is_.is_dictionary(held):
        return kind_of(held.value_type)
    if _any(held, "string", "large_string", "string_view"):
        return TEXT
    if _any(held, "binary", "large_binary", "binary_view", "fixed_size_binary"):
        return BYTES
    if is_lists(held):
        return f"lists of {kind_of(held.value_type)}"
    if is_.is_struct(held):
        fields = [held.field(k) for k in range(held.num_fields)]
        named = sorted(f"{field.name}: {kind_of(field.type)}" for field in fields)
        return f"structs of {', '.join(named)}"
    simple = {"integer": WHOLE, "floating": REAL, "boolean": TRUTH, "null": NULL}
    return next((kind for name, kind in simple.items() if _any(held, name)), str(held))


def _any(held, *names):
    import pyarrow.types as is_

    return any(getattr(is_, f"is_{name}")(held) for name in names)


def is_lists(held: Any) -> bool:
    """Returns whether a type is a list type.

    Args:
      held: Arrow type.

    Returns:
      Whether it is.
    """
    names = "list", "large_list", "fixed_size_list", "list_view", "large_list_view"
    return _any(held, *names)


def holds_images(held: Any) -> bool:
    """Returns whether values can be encoded images.

    Args:
      held: Arrow type.

    Returns:
      Whether they are bytes, or Hugging Face's structs with the field bytes.
    """
    import pyarrow.types as is_

    if is_.is_struct(held):
        index = held.get_field_index("bytes")
        return index >= 0 and kind_of(held.field(index).type) == BYTES
    return kind_of(held) == BYTES


def holds_text(held: Any) -> bool:
    """Returns whether values can be captions.

    Args:
      held: Arrow type.

    Returns:
      Whether they are text, or lists of texts.
    """
    return kind_of(held).removeprefix("lists of ") in (TEXT, BYTES, NULL)


def are_alike(first: Any, second: Any) -> bool:
    """Returns whether two types are interchangeable.

    Args:
      first: Arrow type.
      second: Another.

    Returns:
      Whether they are of the same kind, both images, or one of them is null.
    """
    kinds = {kind_of(first), kind_of(second)}
    return (
        len(kinds) == 1 or NULL in kinds or holds_images(first) & holds_images(second)
    )


def join_columns(paths: Sequence[str], parts: Sequence[Any], name: str) -> Any:
    """Joins a scalar column of several files, in a type that holds all values.

    Args:
      paths: Paths of the files, for messages.
      parts: pyarrow ChunkedArray of each file.
      name: Name of the column, for messages.

    Returns:
      A ChunkedArray, not of a dictionary type.

    Raises:
      ValueError: If the types of two files are not compatible.
    """
    import pyarrow as pa

    known = [part.type for part in parts if kind_of(part.type) != NULL]
    chunks, held = [], _common_type(known)
    for path, part in zip(paths, parts, strict=True):
        try:
            if not are_alike(part.type, held) and REAL != kind_of(held):
                raise ValueError("these do not go together")
            chunks += part.cast(held).chunks
        except (ValueError, NotImplementedError) as error:
            raise ValueError(
                f"column {name} of {path} is {part.type}, and {known[0]} in "
                f"{paths[[p.type for p in parts].index(known[0])]}: {error}"
            ) from error
    return pa.chunked_array(chunks, held)


def _common_type(known):
    """A type that holds the values of all types; the first one if there is none."""
    import pyarrow as pa

    kinds = {kind_of(held) for held in known}
    if not known:
        return pa.null()
    if len(set(known)) == 1 or len(kinds) > 1 and not kinds <= {WHOLE, REAL}:
        held = known[0]
        return held.value_type if pa.types.is_dictionary(held) else held
    if kinds == {WHOLE}:
        return pa.int64()
    return pa.float64() if kinds <= {WHOLE, REAL} else pa.large_string()
