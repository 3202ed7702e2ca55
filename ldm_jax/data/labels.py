"""Classes by name or by number."""

from collections.abc import Sequence

import numpy as np


def find_class(label: str | int, names: Sequence[str] = ()) -> int | None:
    """Finds the class of a name or number.

    A number is an index into the names, from 0, unless some names are numbers
    themselves: then it is a name. In the folders "0", "1", "10", "2", the label "2" is
    the class with that name, of number 3, and so is "02".

    Args:
      label: Name or number.
      names: Names of the classes in the order of their numbers; empty if unknown.

    Returns:
      Number of the class; None if there is no such class.
    """
    names, text = list(names), str(label)
    if text in names:
        return names.index(text)
    # No class has a number of more digits.
    if not text.isdecimal() or len(text) > 18:
        return None
    numbers = [int(n) if n.isdecimal() and len(n) < 19 else None for n in names]
    if any(number is not None for number in numbers):
        found = [k for k, number in enumerate(numbers) if number == int(text)]
        return found[0] if len(found) == 1 else None
    return int(text) if not names or int(text) < len(names) else None


def name_of_class(label: int | np.integer, names: Sequence[str] = ()) -> str:
    """Returns the name of a class.

    Args:
      label: Its number; it may be out of range.
      names: As in `find_class`.

    Returns:
      Its name, or its number as text if it has none.
    """
    return names[label] if 0 <= label < len(names) else str(label)
