"""Chooses the columns of a table that make an example, and converts their values.

Columns have the types of Arrow. An image is bytes, or Hugging Face's struct {bytes,
path}; a caption is text or a list of texts; dots lead into structs ("objects.bbox").
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ldm_jax.config import suggest
from ldm_jax.data.modalities import MODALITIES, modality_of
from ldm_jax.data.tables.kinds import (
    TEXT,
    TRUTH,
    WHOLE,
    holds_images,
    holds_text,
    is_lists,
    kind_of,
)


class Fields(NamedTuple):
    """The columns that make an example.

    Attributes:
      image: Column of the images.
      label: Column of the classes, or None.
      paths: Key of the example -> dotted path of its column.
    """

    image: str
    label: str | None
    paths: Mapping[str, str]

    @property
    def columns(self) -> list[str]:
        """The top-level columns to read."""
        tops = [path.split(".")[0] for path in self.paths.values()]
        label = [self.label] if self.label else []
        return list(dict.fromkeys([self.image, *label, *tops]))


def find_fields(
    schema: Any, keys: Sequence[str], image_key: str | None, label_key: str | None
) -> Fields:
    """Finds the requested columns.

    Args:
      schema: pyarrow Schema of the table.
      keys: Keys of the example besides image and label.
      image_key: Column of the images; None takes "image", or the only such column.
      label_key: Column of the classes; None takes "label" if it holds whole numbers or
        text, "" takes none.

    Returns:
      Fields.

    Raises:
      ValueError: If there is no such column, or it has an unsuitable type.
    """
    image = _find_image(schema, image_key)
    label = _find_label(schema, label_key)
    return Fields(image, label, {key: _find_path(schema, key) for key in keys})


def _find_image(schema, image_key):
    if image_key:
        kind = _whole_column(schema, image_key, "image_key")
        if not holds_images(kind):
            raise ValueError(
                f'image_key="{image_key}": the column holds {kind}; images are bytes, '
                "or structs with the field bytes"
            )
        return image_key
    found = [field.name for field in schema if holds_images(field.type)]
    if "image" in found or len(found) == 1:
        return "image" if "image" in found else found[0]
    columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
    raise ValueError(
        f"{len(found)} columns can be images and none is called image: give image_key, "
        f"a column of bytes or of structs with the field bytes; there are {columns}"
    )


def _whole_column(schema, name, option):
    """Type of a top-level column."""
    kind = _type_of(schema, name, f'{option}="{name}": ')
    if name not in schema.names:
        raise ValueError(
            f'{option}="{name}" lies in a struct: give a column of its own'
        )
    return kind


def _find_label(schema, label_key):
    if label_key == "" or (label_key is None and "label" not in schema.names):
        return None
    name = label_key or "label"
    kind = _whole_column(schema, name, "label_key")
    if kind_of(kind) in (WHOLE, TEXT, TRUTH):
        return name
    if label_key is None:
        return None
    raise ValueError(
        f'label_key="{name}": the column holds {kind}; a class is a whole number or '
        "text"
    )


def _find_path(schema, key):
    """Path of the column that holds a key, by the names of its modality."""
    modality = modality_of(key)
    known = MODALITIES[modality].prepared.get(key, (key,)) if modality else (key,)
    there = [path for path in known if path.split(".")[0] in schema.names]
    path = (there or known)[0]
    option = "keys of an input of captions: " if modality == "caption" else ""
    kind = _type_of(schema, path, option)
    if modality == "caption" and not holds_text(kind):
        raise ValueError(
            f"column {path} holds {kind}; captions are text or lists of texts"
        )
    return path


def _type_of(schema, path, asked=""):
    """Type at a dotted path; `asked` precedes the error, naming the option."""
    import pyarrow.types as is_

    if path in schema.names:
        return schema.field(path).type
    name, *parts = path.split(".")
    if name not in schema.names:
        raise ValueError(
            f'{asked}there is no column "{path}"; {suggest(name, schema.names)}'
        )
    kind = schema.field(name).type
    for part in parts:
        while is_lists(kind):
            kind = kind.value_type
        index = kind.get_field_index(part) if is_.is_struct(kind) else -1
        if index < 0:
            raise ValueError(
                f'{asked}there is no "{part}" in column {name}, for "{path}"'
            )
        kind = kind.field(index).type
    return kind


def names_of_classes(schema: Any, column: str) -> tuple[str, ...] | None:
    """Reads the class names from Hugging Face's metadata of a table.

    Args:
      schema: Schema of the table.
      column: Column of the classes.

    Returns:
      Their names; None if there are none.
    """
    try:
        text = (schema.metadata or {})[b"huggingface"]
        feature = json.loads(text)["info"]["features"][column]
        names = feature["names"] if feature["_type"] == "ClassLabel" else None
    # Other writers may store anything else under that name.
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    if not isinstance(names, list) or not names:
        return None
    return tuple(map(str, names))


def make_example(
    row: Mapping[str, Any],
    fields: Fields,
    names: Sequence[str] | None,
    count: int | None,
) -> dict[str, Any]:
    """Makes an example from a row.

    Args:
      row: Column -> value, as returned by pyarrow's `as_py`.
      fields: The columns that make it.
      names: Names of the classes, or None.
      count: Number of classes, or None.

    Returns:
      {"image": bytes, "label": int if there are classes, further keys}; a key whose
      value is null is left out.

    Raises:
      ValueError: If there is no image, or a value does not fit its key.
    """
    example = {"image": image_bytes(row[fields.image], fields.image)}
    if fields.label:
        example["label"] = _class_of(row[fields.label], fields.label, names, count)
    for key, path in fields.paths.items():
        name, *parts = path.split(".")
        value = row[name]
        for part in parts:
            value = _inner(value, part)
        value = _value_of(key, path, value)
        if value is not None:
            example[key] = value
    return example


def image_bytes(value: Any, column: str) -> bytes:
    """Gets the encoded image from a value.

    Args:
      value: Bytes, or Hugging Face's struct.
      column: Name of the column, for the message.

    Returns:
      Its bytes.

    Raises:
      ValueError: If it has none.
    """
    data = value.get("bytes") if isinstance(value, dict) else value
    if data:
        return data
    # A table may come from anyone: it must not decide which files are read.
    path = value.get("path") if isinstance(value, dict) else None
    if path:
        raise ValueError(
            f"{column} holds only the path {path}: save the data set with its images"
        )
    raise ValueError(f"{column} is null")


def _class_of(value, column, names, count):
    if value is None:
        raise ValueError(f"{column} is null")
    if isinstance(value, str):
        if names is None or value not in names:
            raise ValueError(f"{column} {value!r} is none of the {count} classes")
        return names.index(value)
    if not 0 <= value < (count or 0):
        raise ValueError(
            f"{column} {value} is none of the {count} classes"
            + ('; give label_key="" for no labels' if value < 0 else "")
        )
    return int(value)


def _inner(value, part):
    if isinstance(value, list):
        return [_inner(one, part) for one in value]
    return None if value is None else value.get(part)


def _value_of(key, path, value):
    modality = modality_of(key)
    if value is None:
        return None
    if modality and MODALITIES[modality].decode is not None:
        if not isinstance(value, list):
            return image_bytes(value, path)
    if modality == "caption":
        return value
    if modality == "layout" and not value:
        # An empty list has lost its shape.
        return np.zeros((0, 4), np.float32) if key == "boxes" else np.zeros(0, int)
    return _array_of(path, value)


def _array_of(path, value):
    """Converts lists of numbers to an array; leaves everything else unchanged."""
    if not isinstance(value, list) or not value or _first(value) is str:
        return value
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{path} holds lists of several lengths") from error
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{path} holds lists of something else than numbers")
    return array.astype(np.float32) if array.dtype.kind == "f" else array


def _first(value):
    while isinstance(value, list) and value:
        value = value[0]
    return type(value)
