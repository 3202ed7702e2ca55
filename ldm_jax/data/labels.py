"""Classes by name or by number."""

from collections.abc import Sequence

import numpy as np


def find_class(label: str | int, names: Sequence[str] = ()) -> int | None:
    """Finds the class that is meant.

    A number counts the names, from 0. Where there are names that are numbers
    themselves, a number is a name: in the folders "0", "1", "10", "2" the class "2" is
    called 2, not 3, and "02" would be called that, too.

    Args:
      label: Name or number.
      names: Names of the classes in the order of their numbers; empty if unknown.

    Returns:
      Number of the class; None if there is no such class.
    """
    names, text = list(names), str(label)
    if text in names:
        return names.index(text)
    # More digits are no number of anything.
    if not text.isdecimal() or len(text) > 18:
        return None
    numbers = [int(n) if n.isdecimal() and len(n) < 19 else None for n in names]
    if any(number is not None for number in numbers):
        found = [k for k, number in enumerate(numbers) if number == int(text)]
        return found[0] if len(found) == 1 else None
    return int(text) if not names or int(text) < len(names) else None


def name_of_class(label: int | np.integer, names: Sequence[str] = ()) -> str:
    """Says which class it is.

    Args:
      label: Its number, or one that means none.
      names: As in `find_class`.

    Returns:
      Its name, or its number where it has none.
    """
    return names[label] if 0 <= label < len(names) else str(label)
