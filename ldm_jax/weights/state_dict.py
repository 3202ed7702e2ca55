"""Converts between a PyTorch state dict and our parameters, strictly.

A mapping of keys is data: a list of Rows, each with a key of the state dict, the paths
of our parameters that it is converted to, and a transform with its inverse, so that the
same list is used for reading and writing. It may have rows that a given model lacks
(e.g. of a shortcut). It is strict nonetheless: every key of the state dict must be read
and every parameter set.

Such lists are made by functions `*_rows` from a module of ours: in this file for single
layers, in `tower_names` for text and image encoders, in `lpips`, and in
`convert/*/names.py` for the other networks.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

# Key -> array, or an object that `np.asarray` accepts, such as `unpickle.Tensor`.
StateDict = Mapping[str, Any]
# Nested dict of arrays, or of objects with their shapes and types.
Params = Mapping[str, Any]


class Transform(NamedTuple):
    """A change of layout, in both directions.

    Attributes:
      to_ours: Maps the array of a state dict to a tuple of our arrays.
      to_theirs: Maps our arrays, as positional arguments, to that of a state dict; None
        for a key that is not written.
    """

    to_ours: Callable
    to_theirs: Callable | None


class Row(NamedTuple):
    """One key of a state dict and the parameters that it is converted to.

    Attributes:
      theirs: Key of the state dict.
      ours: Paths in our parameters, such as "conv_in/kernel"; () for a key without any.
      transform: Change of layout.
    """

    theirs: str
    ours: tuple[str, ...]
    transform: Transform


def _pointwise(trailing: int) -> Transform:
    """[out, in] or a 1x1 convolution [out, in, 1, ...] <-> dense kernel [in, out]."""

    def to_ours(a):
        if any(size != 1 for size in a.shape[2:]):
            raise ValueError("not a 1x1 kernel")
        return (a.reshape(a.shape[:2]).T,)

    return Transform(to_ours, lambda a: a.T.reshape(*a.T.shape, *(1,) * trailing))


SAME = Transform(lambda a: (a,), lambda a: a)
CONV = Transform(
    lambda a: (a.transpose(2, 3, 1, 0),), lambda a: a.transpose(3, 2, 0, 1)
)
# These read each other's layouts; they differ in the one they write.
DENSE, POINTWISE_1D, POINTWISE_2D = (_pointwise(trailing) for trailing in (0, 1, 2))
# For tensors in files that are never used: read, dropped and not written.
UNUSED = Transform(lambda a: (), None)
# PyTorch's batch norms count batches; our modules do not need the count.
COUNTER = Transform(lambda a: (), lambda: np.zeros((), np.int64))


def split_qkv(num_heads: int, head_major: bool, transform: Transform) -> Transform:
    """Makes a Transform: one array of queries, keys and values <-> three arrays.

    Args:
      num_heads: Number of heads.
      head_major: Whether the one array is ordered (head, qkv, channel) and not (qkv,
        head, channel).
      transform: Change of layout of each of the three.

    Returns:
      A Transform from [3 * heads * channels, ...] to three arrays.
    """
    lead = (num_heads, 3) if head_major else (3, num_heads)

    def to_ours(a):
        parts = a.reshape(*lead, -1, *a.shape[1:])
        parts = np.moveaxis(parts, 1, 0) if head_major else parts
        return tuple(transform.to_ours(p.reshape(-1, *a.shape[1:]))[0] for p in parts)

    def to_theirs(*arrays):
        parts = np.stack([transform.to_theirs(a) for a in arrays])
        split = parts.reshape(3, num_heads, -1, *parts.shape[2:])
        split = np.moveaxis(split, 1, 0) if head_major else split
        return split.reshape(-1, *parts.shape[2:])

    return Transform(to_ours, to_theirs)


def layer_rows(
    theirs: str, ours: str, kernel: Transform, bias: bool = True
) -> list[Row]:
    """Maps a convolution or dense layer.

    Args:
      theirs: Prefix of its keys, without the last dot.
      ours: Prefix of our paths, without the last slash.
      kernel: Change of layout of its kernel.
      bias: Whether it has a bias.

    Returns:
      List of Rows.
    """
    rows = [Row(f"{theirs}.weight", (f"{ours}/kernel",), kernel)]
    return rows + [Row(f"{theirs}.bias", (f"{ours}/bias",), SAME)] * bias


def norm_rows(theirs: str, ours: str) -> list[Row]:
    """Maps the scale and bias of a normalisation.

    Args:
      theirs: Prefix of its keys, without the last dot.
      ours: Prefix of our paths, without the last slash.

    Returns:
      List of Rows.
    """
    return [
        Row(f"{theirs}.weight", (f"{ours}/scale",), SAME),
        Row(f"{theirs}.bias", (f"{ours}/bias",), SAME),
    ]


def prefixed(rows: Sequence[Row], theirs: str, ours: str) -> list[Row]:
    """Adds prefixes to the keys and paths of a mapping.

    Args:
      rows: The mapping.
      theirs: Prefix of every key of the state dict.
      ours: Prefix of every path of our parameters.

    Returns:
      List of Rows.
    """
    return [
        Row(theirs + row.theirs, tuple(ours + path for path in row.ours), row.transform)
        for row in rows
    ]


def select(state_dict: StateDict, prefix: str) -> dict[str, Any]:
    """Selects one network of several.

    Args:
      state_dict: Key -> array.
      prefix: Prefix of the keys of the network.

    Returns:
      Dict of its keys, without the prefix -> array.
    """
    n = len(prefix)
    return {k[n:]: v for k, v in state_dict.items() if k.startswith(prefix)}


def to_params(
    rows: Sequence[Row], state_dict: StateDict, target: Params
) -> dict[str, Any]:
    """Reads a state dict into parameters shaped like `target`.

    Args:
      rows: The mapping.
      state_dict: Key -> array.
      target: Nested dict of arrays or ShapeDtypeStructs, as returned by `init`.

    Returns:
      Nested dict of NumPy arrays with the shapes and types of `target`; views of the
      given arrays if the type is the same, so that a model need not be in memory.

    Raises:
      ValueError: If a key is unread, a parameter unset or a shape wrong; all keys of
        that kind are named.
    """
    target = flatten_dict(target, sep="/")
    params, wrong = {}, []
    for row in rows:
        if row.theirs not in state_dict or not set(row.ours) <= target.keys():
            continue
        array = np.asarray(state_dict[row.theirs])
        try:
            arrays = row.transform.to_ours(array)
        except ValueError:
            wrong.append(f"{row.theirs} {array.shape} for {', '.join(row.ours)}")
            continue
        for path, part in zip(row.ours, arrays, strict=True):
            if part.shape != target[path].shape:
                wrong.append(
                    f"{row.theirs} {array.shape} for {path} {target[path].shape}"
                )
                continue
            params[path] = np.asarray(part, target[path].dtype)
    _complain("weights of a wrong shape", wrong)
    read = {row.theirs for row in rows if set(row.ours) <= target.keys()}
    _complain("keys that nothing reads", [k for k in state_dict if k not in read])
    sources = {path: row.theirs for row in rows for path in row.ours}
    _complain(
        "missing keys",
        [f"{sources.get(p, '?')} (for {p})" for p in target if p not in params],
    )
    return unflatten_dict(params, sep="/")


def to_state_dict(rows: Sequence[Row], params: Params) -> dict[str, Any]:
    """Writes parameters as a state dict: inverse of `to_params`, without UNUSED keys.

    Args:
      rows: The mapping.
      params: Nested dict of arrays.

    Returns:
      Dict of key -> NumPy array, a view of ours if possible.

    Raises:
      ValueError: If there is a parameter that no row writes.
    """
    params = flatten_dict(params, sep="/")
    state_dict, written = {}, set()
    for row in rows:
        if row.transform.to_theirs and set(row.ours) <= params.keys():
            arrays = (np.asarray(params[path]) for path in row.ours)
            array = row.transform.to_theirs(*arrays)
            state_dict[row.theirs] = array
            written |= set(row.ours)
    _complain("parameters that nothing writes", sorted(set(params) - written))
    return state_dict


def _complain(what: str, items: list[str]) -> None:
    """Raises ValueError if there are items, naming the first of them."""
    if items:
        items = list(dict.fromkeys(items))
        shown = "; ".join(items[:8]) + (" ..." if len(items) > 8 else "")
        raise ValueError(f"{len(items)} {what}: {shown}")
