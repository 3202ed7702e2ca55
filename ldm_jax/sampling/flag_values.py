"""Reads the values of condition flags by modality; sample k uses the k-th, in turn.

The flags are those of the rows of MODALITIES, and OTHER_FLAGS.
"""

import contextlib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags, logging

from ldm_jax.config import suggest
from ldm_jax.data.labels import find_class
from ldm_jax.data.layout import parse_layout
from ldm_jax.data.modalities import MODALITIES, Flag
from ldm_jax.data.sidecars import IMAGE_SUFFIXES, drop_sidecars
from ldm_jax.errors import ConfigError
from ldm_jax.ranges import read_whole
from ldm_jax.reading import (
    MAX_TEXT,
    open_file,
    parse_json,
    read_array,
    read_file,
    read_lines,
)
from ldm_jax.store import as_path, exists, is_dir, raise_if_silent

# Maximum number of rows in a NumPy file, one per sample.
_MOST_ROWS = 2**22
# Maximum of the sizes and corners that samples are conditioned on, in pixels.
_MOST = 2**16
# Maximum bytes of a file to hash; the memory that it needs is checked later.
_MOST_HASHED = 2**34


class FlagValues(NamedTuple):
    """Values of the flags of one modality.

    Attributes:
      values: Tuple of strings, numbers, paths, arrays or layouts, at least one.
      record: Their record in `settings.json`: contents, not names of files.
      file: Flag of a file that had some of them, one per line; or empty.
    """

    values: tuple
    record: Any
    file: str = ""

    def __getitem__(self, k: int) -> Any:
        """Returns the value of sample k."""
        return self.values[k % len(self.values)]


class Names(NamedTuple):
    """Names that values may use instead of numbers; empty if they are unknown.

    Attributes:
      classes: Names of the classes of images in the order of their numbers.
      boxes: Names of the classes of boxes likewise.
      ignore_label: The number that means no class of images, or None.
    """

    classes: Sequence[str] = ()
    boxes: Sequence[str] = ()
    ignore_label: int | None = None


NO_NAMES = Names()

# Flags for guidance, which are not part of an example, by name.
OTHER_FLAGS = {
    flag.name: flag
    for flag in (
        Flag(
            "negative_prompt",
            "Caption that guidance pushes away from; may be repeated.",
            "texts",
        ),
        Flag("guide_image", "Images to resemble at low resolution."),
    )
}


def flag_rows() -> dict[str, tuple[Flag, ...]]:
    """Lists all flags that give values.

    Returns:
      Row of MODALITIES or of OTHER_FLAGS -> its flags, the main one first.
    """
    rows = {name: row.flags for name, row in MODALITIES.items() if row.flags}
    return rows | {name: (flag,) for name, flag in OTHER_FLAGS.items()}


def define_flag(
    flag: Flag, flag_values: flags.FlagValues = flags.FLAGS
) -> flags.FlagHolder:
    """Defines a flag, whose value is a list of strings or None.

    Args:
      flag: The flag.
      flag_values: Where to define it.

    Returns:
      Its FlagHolder.
    """
    # These may contain commas, so the flag is repeated for each value.
    several = flag.form in ("texts", "sizes", "corners")
    define = flags.DEFINE_multi_string if several else flags.DEFINE_list
    return define(flag.name, None, flag.help, flag_values=flag_values)


def define_flags(
    flag_values: flags.FlagValues = flags.FLAGS,
) -> dict[str, flags.FlagHolder]:
    """Defines the flags of all rows of MODALITIES.

    Args:
      flag_values: Where to define them.

    Returns:
      Name of the flag -> its FlagHolder.
    """
    rows = [flag for row in MODALITIES.values() for flag in row.flags]
    return {flag.name: define_flag(flag, flag_values) for flag in rows}


def dashed(name: str) -> str:
    """Returns the flags of a row, for a message.

    Args:
      name: Row of MODALITIES or of OTHER_FLAGS.

    Returns:
      Text such as "--prompt (or --prompts_file)".
    """
    first, *others = (f"--{flag.name}" for flag in flag_rows()[name])
    return f"{first} (or {', '.join(others)})" if others else first


def read_flags(
    given: Mapping[str, str | Sequence[str] | None], names: Names = NO_NAMES
) -> dict[str, FlagValues]:
    """Reads the values of the flags.

    Args:
      given: Flag -> string or list of strings. Flags that are None or empty are
        skipped.
      names: Names of classes.

    Returns:
      Dict of row of MODALITIES, or of OTHER_FLAGS -> FlagValues; the values of several
      flags of one row are joined.

    Raises:
      ConfigError: If a flag is unknown, or a file is missing or invalid.
    """
    rows = flag_rows()
    known = [flag.name for flags_of_row in rows.values() for flag in flags_of_row]
    for flag in given:
        if flag not in known:
            raise ConfigError(f"there is no flag --{flag}; {suggest(flag, known)}")
    found = {}
    for name, flags_of_row in rows.items():
        for flag in flags_of_row:
            texts = given.get(flag.name)
            if not texts:
                continue
            texts = [texts] if isinstance(texts, str) else texts
            values = FORMS[flag.form](name, flag.name, texts, names)
            found[name] = _joined(found.get(name), values)
    return found


def _joined(first, second):
    if first is None:
        return second
    file = first.file or second.file
    return FlagValues(first.values + second.values, first.record + second.record, file)


def _texts(name, flag, texts, names):
    return FlagValues(tuple(texts), list(texts))


def _lines(name, flag, texts, names):
    """One text per line of files, or of the `.txt` files of folders."""
    lines = [line for _, line in _read_lines(name, flag, texts, "prompt")]
    return FlagValues(tuple(lines), lines, f"--{flag}")


def _read_lines(name, flag, texts, what):
    """Reads lines; returns pairs of the place of a line, for messages, and the line.

    In a folder of images a file has the captions of one image; the first is used.
    """
    lines, of_images = [], set(filter(_has_images, map(as_path, texts)))
    for path in _find(name, flag, texts, (".txt",)):
        with _reading(flag, path):
            read = [*enumerate(read_lines(path), 1)]
        if as_path(path).parent in of_images:
            read = [each for each in read if each[1]][:1] or [(1, "")]
        lines += [(f"{path}, line {k}", line) for k, line in read]
    if not any(line for _, line in lines):
        raise ConfigError(
            f"--{flag}={','.join(texts)} holds no {what}: write one per line"
        )
    return lines


def _labels(name, flag, texts, names):
    """Class numbers; their range is checked later, when the classes are known."""
    numbers = [_label(f"--{flag}", str(text), names) for text in texts]
    return FlagValues(tuple(numbers), numbers)


def _label_lines(name, flag, texts, names):
    """One class per line of files."""
    lines = _read_lines(name, flag, texts, "class")
    while not lines[-1][1]:
        lines.pop()
    numbers = [_label(f"--{flag}: {where}", line, names) for where, line in lines]
    return FlagValues(tuple(numbers), numbers, f"--{flag}")


def _label(where, label, names):
    found = find_class(label, names.classes)
    if found is not None:
        return found
    if label == str(names.ignore_label):
        return names.ignore_label
    known = "give its number"
    if names.classes:
        known = suggest(label, list(names.classes))
    raise ConfigError(f"{where}: there is no class '{label}'; {known}")


def _sizes(name, flag, texts, names):
    """Heights and widths, at least 1."""
    return _pairs(flag, texts, "x", 1, "HEIGHTxWIDTH in pixels, as 512x768")


def _corners(name, flag, texts, names):
    """Tops and lefts, at least 0."""
    return _pairs(flag, texts, ",", 0, "TOP,LEFT in pixels, as 0,64")


def _pairs(flag, texts, between, least, what):
    pairs = []
    for text in texts:
        parts = text.split(between)
        numbers = tuple(read_whole(part.strip(), least, _MOST) for part in parts)
        if len(numbers) != 2 or None in numbers:
            raise ConfigError(f"--{flag}={text}: give {what}")
        pairs.append(numbers)
    return FlagValues(tuple(pairs), [list(pair) for pair in pairs])


def _images(name, flag, texts, names):
    paths = _find(name, flag, texts, IMAGE_SUFFIXES)
    return FlagValues(tuple(paths), _digest(flag, paths))


def _arrays(name, flag, texts, names):
    """Rows of arrays in `.npy` files."""
    paths = _find(name, flag, texts, (".npy",))
    rows = []
    for path in paths:
        try:
            # Memory-mapped: rows are read when they are used.
            array = read_array(path)
            if array.ndim and len(array) > _MOST_ROWS:
                raise ValueError(
                    f"it has {len(array):,} rows, more than {_MOST_ROWS:,}"
                )
            row = array.nbytes // max(len(array) if array.ndim else 1, 1)
            if row > MAX_TEXT:
                raise ValueError(
                    f"a row has {row:,} bytes, and at most {MAX_TEXT:,} are read"
                )
            rows += list(array)
        except (OSError, ValueError, TypeError) as error:
            raise_if_silent(path, error)
            raise ConfigError(
                f"--{flag}: {path} is not a NumPy array: {error}"
            ) from error
    if len({row.shape for row in rows}) != 1:
        raise ConfigError(f"--{flag}: give arrays [samples, ...] whose rows are alike")
    return FlagValues(tuple(rows), _digest(flag, paths))


def _layouts(name, flag, texts, names):
    """Layouts of JSON files; a file holds one, or a list of several."""
    paths, layouts = _find(name, flag, texts, (".json",)), []
    for path in paths:
        try:
            read = parse_json(_read(flag, path))
            several = isinstance(read, list) and all(isinstance(x, list) for x in read)
            for layout in read if several and read else [read]:
                layouts.append(parse_layout(layout, names.boxes or None))
                note = MODALITIES[name].note(layouts[-1])
                if note:
                    logging.warning("%s: %s", path, note)
        except ValueError as error:
            raise ConfigError(f"--{flag}: {path}: {error}") from error
    return FlagValues(tuple(layouts), _digest(flag, paths))


def _find(name, flag, texts, suffixes):
    """The given files, and those in given folders in the order of their names."""
    paths = []
    for text in texts:
        path = as_path(text)
        if not exists(path):
            raise ConfigError(f"--{flag}: there is no file or folder {path}")
        found = _in_folder(name, path, suffixes) if is_dir(path) else [str(path)]
        if not found:
            raise ConfigError(
                f"--{flag}: the folder {path} holds no {' or '.join(suffixes)}"
            )
        paths += found
    return paths


def _has_images(folder):
    names = (path.name for path in folder.iterdir()) if is_dir(folder) else ()
    return any(name.lower().endswith(IMAGE_SUFFIXES) for name in names)


def _in_folder(name, folder, suffixes):
    names = sorted(path.name for path in folder.iterdir())
    names = [n for n in names if n.lower().endswith(suffixes) and n[0] != "."]
    # In a folder for training, maps are beside the images.
    beside = MODALITIES[name].suffix if name in MODALITIES else None
    own = [n for n in names if beside and n.endswith(beside)]
    return [str(folder / n) for n in own or drop_sidecars(names)]


def _digest(flag, paths):
    """The number of files and a hash of their contents, without their names."""
    whole = hashlib.sha256()
    for path in paths:
        with _reading(flag, path), open_file(path, _MOST_HASHED) as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return {"files": len(paths), "sha256": whole.hexdigest()[:16]}


def _read(flag, path):
    with _reading(flag, path):
        return read_file(path, MAX_TEXT)


@contextlib.contextmanager
def _reading(flag, path):
    """Adds the flag and the file to errors of reading."""
    try:
        yield
    except OSError as error:
        raise_if_silent(path, error)
        reason = error.strerror
        raise ConfigError(f"--{flag}: cannot read {path}: {reason}") from error
    except ValueError as error:
        raise ConfigError(f"--{flag}: cannot read {path}: {error}") from error


# `form` of a flag -> function that reads its values: (row, flag, strings, Names) ->
# FlagValues.
FORMS: dict[str, Callable[[str, str, Sequence[str], Names], FlagValues]] = {
    "texts": _texts,
    "lines": _lines,
    "labels": _labels,
    "label_lines": _label_lines,
    "layouts": _layouts,
    "images": _images,
    "arrays": _arrays,
    "sizes": _sizes,
    "corners": _corners,
}
