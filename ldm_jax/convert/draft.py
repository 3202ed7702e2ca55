"""A target that appears whole or not at all."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator


@contextlib.contextmanager
def drafted(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a place to write to, whose files move to the target at the end.

    What is written lies in a folder beside the target, on the same disk; it goes away
    if something fails, so that the same command can be tried again.

    Args:
      target: File or folder that is to be; other files may be written beside it.

    Yields:
      Path of the same name, in the folder of the draft.
    """
    folder = target.parent / f".{target.name}.partial"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder / target.name
        # The target last: where it is, all of it is.
        for path in sorted(folder.iterdir(), key=lambda path: path.name == target.name):
            os.replace(path, target.parent / path.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
