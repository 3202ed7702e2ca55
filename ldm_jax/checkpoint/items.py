"""Reads the items of a checkpoint with Orbax.

Names in checkpoints of older versions are upgraded here and nowhere else.
"""

import contextlib
import errno
import signal
import threading
from typing import Any

import jax
from absl import logging
from orbax.checkpoint import v1 as ocp

from ldm_jax import peers
from ldm_jax.checkpoint.checksums import find_damage
from ldm_jax.checkpoint.damage import DamagedCheckpoint
from ldm_jax.errors import MEMORY_WORDS
from ldm_jax.files import disk_errno
from ldm_jax.store import Place, is_fault

# Error codes for a missing file; others, e.g. too many open files, do not mean that the
# checkpoint is damaged.
_MISSING = (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR)


def verify(folder: Place, *items: str) -> None:
    """Verifies the files of some items by their checksums.

    Args:
      folder: Folder of the checkpoint.
      *items: Names of the items.

    Raises:
      DamagedCheckpoint: If they are not what was saved.
    """
    damage = find_damage(folder, items)
    if damage:
        raise DamagedCheckpoint(folder, damage)


@contextlib.contextmanager
def _reading(folder):
    """Turns errors into DamagedCheckpoint, unless the machine caused them.

    Errors of memory, the system or another process, and Ctrl-C, are raised as they are:
    the user must not be asked to move an intact checkpoint away.
    """
    with _interruptible():
        try:
            yield
        except Exception as error:  # Orbax raises many kinds for a damaged folder.
            # It also wraps other errors in one type of its own.
            for cause in _causes(error):
                if _is_of_the_machine(cause):
                    raise cause from None
            raise DamagedCheckpoint(folder, error) from error


@contextlib.contextmanager
def _interruptible():
    """Raises KeyboardInterrupt on Ctrl-C, which Orbax turns into another error."""
    previous, pressed = signal.getsignal(signal.SIGINT), False

    def handle(number, frame):
        nonlocal pressed
        try:
            previous(number, frame)
        except BaseException:
            pressed = True
            raise

    main = threading.current_thread() is threading.main_thread()
    if not (main and callable(previous)):
        yield
        return
    signal.signal(signal.SIGINT, handle)
    try:
        yield
    except Exception:
        if not pressed:
            raise
    finally:
        signal.signal(signal.SIGINT, previous)
    if pressed:
        raise KeyboardInterrupt


def _causes(error):
    """An error and the chain of its causes, each once, as the chain may be cyclic."""
    causes = []
    while error is not None and error not in causes:
        causes.append(error)
        error = error.__cause__ or error.__context__
    return causes


def _is_of_the_machine(error):
    text = str(error)
    return (
        isinstance(error, MemoryError)
        or is_fault(error)
        or disk_errno(error) not in _MISSING
        or any(words in text for words in MEMORY_WORDS)
        or peers.may_be_lost(text)
    )


def load(folder: Place, targets: dict[str, Any]) -> dict[str, Any]:
    """Reads items, whose checksums the caller has verified.

    Args:
      folder: Folder of the checkpoint.
      targets: Name of the item -> abstract tree for Orbax to restore.

    Returns:
      Name of the item -> its contents.

    Raises:
      DamagedCheckpoint: If they cannot be read.
    """
    with _reading(folder):
        return ocp.load_checkpointables(folder, targets)


def shapes_of(folder: Place, *items: str) -> dict[str, Any]:
    """Reads the shapes and dtypes of the arrays in a checkpoint.

    Args:
      folder: Folder of the checkpoint.
      *items: Items that must exist.

    Returns:
      Name of the item -> tree of shapes and dtypes, under the names that were saved,
      for the items that hold arrays.

    Raises:
      DamagedCheckpoint: If they cannot be read, or an item is missing.
    """
    verbosity = logging.get_verbosity()
    try:
        # Orbax warns of the item `meta`, which is not a tree of arrays.
        logging.set_verbosity(logging.ERROR)
        with _reading(folder):
            metadata = ocp.checkpointables_metadata(folder).metadata
    finally:
        logging.set_verbosity(verbosity)
    trees = {name: tree for name, tree in metadata.items() if name != "meta"}
    for name in (*items, *trees):
        if trees.get(name) is None:
            raise DamagedCheckpoint(folder, f"its item '{name}' is missing or damaged")
    return trees


def is_old(shapes: dict[str, Any]) -> bool:
    """Whether a checkpoint calls the backbone `unet`, as up to version 0.1.

    Args:
      shapes: Result of `shapes_of`.

    Returns:
      Whether it does.
    """
    return "unet" in shapes["params"]


def upgrade(items: dict[str, Any], shapes: dict[str, Any]) -> dict[str, Any]:
    """Renames the networks of an old checkpoint to the current names.

    Args:
      items: Name of the item -> tree.
      shapes: Result of `shapes_of` for the checkpoint.

    Returns:
      The items with current names.
    """
    return rename(items, "unet", "backbone") if is_old(shapes) else items


def rename(tree: Any, name: str, other: str) -> Any:
    """Renames a network in a tree of parameters or optimiser states.

    Args:
      tree: Pytree, for example of items.
      name: Name of the network in the tree.
      other: Its new name.

    Returns:
      The renamed tree.
    """

    def by_network(node):
        return isinstance(node, dict) and name in node

    def renamed(node):
        if not by_network(node):
            return node
        return {other if key == name else key: node[key] for key in node}

    return jax.tree.map(renamed, tree, is_leaf=by_network)
