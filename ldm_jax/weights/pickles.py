"""An interpreter of pickles that imports nothing, calls nothing and stays bounded.

Python's own reader calls functions that a pickle names, and the size of a pickle does
not bound its cost: an index of its memo may ask for 34 GB, nested tuples take 2^60
steps to hash. Here opcodes build plain containers; the caller resolves names; anything
else is an `Inert`. A pickle that would exceed the limits below raises an error first.
"""

import collections
import pickletools
from collections.abc import Callable
from io import BufferedIOBase
from typing import Any

# A checkpoint of a whole training run has about 300,000 opcodes in a megabyte. Within
# these limits the worst case is less than a gigabyte and ten seconds.
MAX_BYTES = 64 << 20
MAX_STEPS = 2_000_000
_MAX_INTEGER = 1 << 128
# Hashes of numbers are predictable, unlike those of strings, so that all keys of a dict
# may be made to collide: this many take some seconds. Larger numbers have the hashes of
# small ones.
MAX_NUMBERS, _MAX_KEY = 50_000, 1 << 60


class PickleError(ValueError):
    """Raised for a damaged, malicious or foreign file; the message is one line."""


class Inert:
    """Stand-in for an object or a class of a library that does nothing."""

    def take(self, attributes: Any) -> None:
        """Receives the state of the object in the pickle.

        Args:
          attributes: Its attributes, of whatever type.
        """


class Known:
    """A function that a pickle may call.

    Attributes:
      function: (machine, arguments) -> value; called instead of the named function.
    """

    def __init__(self, function: Callable[["Machine", tuple], Any]) -> None:
        """Stores the function.

        Args:
          function: See the class.
        """
        self.function = function


def describe(value: Any) -> str:
    """Describes a value of a pickle in a few words, at little cost.

    Args:
      value: Any value, even one whose `repr` would take forever.

    Returns:
      The `repr` of a number, string or None, truncated; else the type.
    """
    if isinstance(value, str | int | float | bool) or value is None:
        return f"{value!r:.80}"
    return f"a {type(value).__name__}"


def load(
    file: BufferedIOBase,
    find_name: Callable[[str, str], Any],
    find_storage: Callable[[Any], Any] | None = None,
) -> Any:
    """Reads one pickle.

    Args:
      file: Binary file, at the first byte of the pickle; left after its last byte.
      find_name: (module, name) -> its meaning: a `Known`, `Inert` or a value; raises
        PickleError for a name that is not allowed.
      find_storage: Persistent id -> value; if None, they raise an error.

    Returns:
      The pickled object, of containers, numbers, strings, results of the functions and
      `Inert` objects.

    Raises:
      PickleError: If it is damaged, exceeds the limits, or uses forbidden operations.
    """
    return Machine(find_name, find_storage).run(file)


class Machine:
    """The interpreter of one pickle: its stack, memo and count of steps."""

    def __init__(
        self,
        find_name: Callable[[str, str], Any],
        find_storage: Callable[[Any], Any] | None,
    ) -> None:
        """Makes an interpreter with an empty stack; see `load`.

        Args:
          find_name: See `load`.
          find_storage: See `load`.
        """
        self._find_name, self._find_storage = find_name, find_storage
        self._stack: list = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._steps = self._numbers = 0

    def run(self, file: BufferedIOBase) -> Any:
        """Reads one pickle; see `load`.

        Args:
          file: See `load`.

        Returns:
          See `load`.

        Raises:
          PickleError: See `load`.
        """
        for opcode, argument, _ in pickletools.genops(_Limited(file)):
            self.count(1)
            name = opcode.name
            if name in _CONSTANTS:
                self._stack.append(_CONSTANTS[name])
            elif name in _ARGUMENTS:
                self._stack.append(_checked(argument))
            elif name in _ACTIONS:
                _ACTIONS[name](self, argument)
            elif name == "STOP":
                return self._stack.pop()
            else:
                raise PickleError(f"its pickle has the opcode {name}")
        raise PickleError("its pickle has no end")

    def count(self, steps: int) -> None:
        """Counts steps.

        Args:
          steps: Number of values that are made or copied.

        Raises:
          PickleError: If there are more than MAX_STEPS in total.
        """
        self._steps += steps
        if self._steps > MAX_STEPS:
            raise PickleError(
                f"its pickle takes more than {MAX_STEPS:,} steps, which no file of "
                "weights does: save the state dict alone"
            )

    def keys(self, keys: list) -> list:
        """Checks that keys are cheap to hash and to compare.

        Args:
          keys: Keys of a dict, or members of a set.

        Returns:
          The same keys.

        Raises:
          PickleError: If a key is not a number, string, bytes, None, `Inert` or short
            tuple of strings, or there are too many or too large numbers.
        """
        for key in keys:
            number = isinstance(key, int | float)
            self._numbers += number
            text = type(key) is tuple and len(key) <= 64
            text = text and all(isinstance(part, str) for part in key)
            plain = isinstance(key, str | bytes | Inert | None) or text or number
            if not plain or (isinstance(key, int) and abs(key) >= _MAX_KEY):
                raise PickleError(
                    f"its pickle has {describe(key)} as a key, which no file of "
                    "weights has"
                )
        if self._numbers > MAX_NUMBERS:
            raise PickleError(
                f"its pickle has more than {MAX_NUMBERS:,} numbers as keys, which no "
                "file of weights has: save the state dict alone"
            )
        return keys

    # The actions of opcodes: each takes the argument of the opcode.

    def _mark(self, _):
        self._marks.append(len(self._stack))

    def _pop_mark(self, _=None):
        """Pops the items above the last mark."""
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _pop(self, _):
        if self._marks and self._marks[-1] == len(self._stack):
            self._marks.pop()
        else:
            self._stack.pop()

    def _dup(self, _):
        self._stack.append(self._stack[-1])

    def _get(self, index):
        self._stack.append(self._memo[index])

    def _put(self, index):
        self._memo[index] = self._stack[-1]

    def _memoize(self, _):
        self._memo[len(self._memo)] = self._stack[-1]

    def _tuple(self, size):
        if len(self._stack) < size:
            raise PickleError("its pickle takes more than it has made")
        self._stack[-size:] = [tuple(self._stack[-size:])]

    def _tuple_of_mark(self, _):
        self._stack.append(tuple(self._pop_mark()))

    def _list_of_mark(self, _):
        self._stack.append(self._pop_mark())

    def _dict_of_mark(self, _):
        items = self._pop_mark()
        self._stack.append({})
        self._set_items(items)

    def _set_of_mark(self, _):
        self._stack.append(frozenset(self.keys(self._pop_mark())))

    def _append(self, _):
        self._extend([self._stack.pop()])

    def _appends(self, _):
        self._extend(self._pop_mark())

    def _extend(self, items):
        target = self._stack[-1]
        if type(target) is list:
            target.extend(items)
        elif not isinstance(target, Inert):
            raise PickleError(f"its pickle appends to {describe(target)}")

    def _set_item(self, _):
        pair = self._stack[-2:]
        del self._stack[-2:]
        self._set_items(pair)

    def _set_items_of_mark(self, _):
        self._set_items(self._pop_mark())

    def _set_items(self, items):
        target = self._stack[-1]
        if isinstance(target, dict):
            keys = self.keys(items[::2])
            target.update(zip(keys, items[1::2], strict=True))
        elif not isinstance(target, Inert):
            raise PickleError(f"its pickle sets an item of {describe(target)}")

    def _add_items(self, _):
        items = self.keys(self._pop_mark())
        target = self._stack[-1]
        if isinstance(target, set):
            target.update(items)
        elif not isinstance(target, Inert):
            raise PickleError(f"its pickle adds to {describe(target)}")

    def _global(self, argument):
        # The module is the part before the first space; old names have no space.
        self._push_name(*argument.split(" ", 1))

    def _stack_global(self, _):
        module, name = self._stack[-2:]
        del self._stack[-2:]
        self._push_name(module, name)

    def _push_name(self, module, name):
        if not isinstance(module, str) or not isinstance(name, str):
            raise PickleError("its pickle asks for a name that is not text")
        self._stack.append(self._find_name(module, name))

    def _reduce(self, _):
        arguments = self._stack.pop()
        self._call(self._stack.pop(), arguments)

    def _new_ex(self, _):
        function, arguments, _ = self._stack[-3:]
        del self._stack[-3:]
        self._call(function, arguments)

    def _inst(self, argument):
        arguments = tuple(self._pop_mark())
        self._global(argument)
        self._call(self._stack.pop(), arguments)

    def _obj(self, _):
        function, *arguments = self._pop_mark()
        self._call(function, tuple(arguments))

    def _call(self, function, arguments):
        if type(arguments) is not tuple:
            raise PickleError(f"its pickle calls with {describe(arguments)}")
        if isinstance(function, Known):
            self._stack.append(function.function(self, arguments))
        elif isinstance(function, Inert):
            self._stack.append(Inert())
        else:
            raise PickleError(f"its pickle calls {describe(function)}")

    def _build(self, _):
        attributes = self._stack.pop()
        target = self._stack[-1]
        if isinstance(target, Inert):
            target.take(attributes)
        # An ordered dict has state, too, such as the versions of modules.
        elif not isinstance(target, dict):
            raise PickleError("its pickle alters an object that it may only refer to")

    def _persistent(self, pid):
        if self._find_storage is None:
            raise PickleError(f"an unexpected reference {describe(pid)}")
        self._stack.append(self._find_storage(pid))

    def _binary_persistent(self, _):
        self._persistent(self._stack.pop())

    def _nothing(self, _):
        pass


def _checked(value):
    if isinstance(value, int) and abs(value) >= _MAX_INTEGER:
        raise PickleError("its pickle has an integer of more than 128 bits")
    return value


class _Limited:
    """A file of which no more than MAX_BYTES are read."""

    def __init__(self, file):
        self._file, self._left, self.tell = file, MAX_BYTES, file.tell

    def read(self, size):
        """Reads at most `size` bytes; PickleError beyond the limit."""
        self._take(size)
        return self._file.read(size)

    def readline(self):
        """Reads a line; PickleError beyond the limit."""
        line = self._file.readline(self._left)
        self._take(len(line))
        return line

    def _take(self, size):
        self._left -= size
        if self._left <= 0 or size < 0:
            raise PickleError(
                f"its pickle holds more than {MAX_BYTES >> 20} MiB, which is no place "
                "for so much: save the state dict alone"
            )


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}

# Opcodes that push their argument.
_ARGUMENTS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("FLOAT", "BINFLOAT"),
}

# Opcode -> (machine, its argument) -> None.
_ACTIONS = {
    "PROTO": Machine._nothing,
    "FRAME": Machine._nothing,
    "MARK": Machine._mark,
    "POP": Machine._pop,
    "POP_MARK": Machine._pop_mark,
    "DUP": Machine._dup,
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), Machine._get),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), Machine._put),
    "MEMOIZE": Machine._memoize,
    "EMPTY_TUPLE": lambda machine, _: machine._stack.append(()),
    "EMPTY_LIST": lambda machine, _: machine._stack.append([]),
    "EMPTY_DICT": lambda machine, _: machine._stack.append({}),
    "EMPTY_SET": lambda machine, _: machine._stack.append(set()),
    "TUPLE": Machine._tuple_of_mark,
    "TUPLE1": lambda machine, _: machine._tuple(1),
    "TUPLE2": lambda machine, _: machine._tuple(2),
    "TUPLE3": lambda machine, _: machine._tuple(3),
    "LIST": Machine._list_of_mark,
    "DICT": Machine._dict_of_mark,
    "FROZENSET": Machine._set_of_mark,
    "APPEND": Machine._append,
    "APPENDS": Machine._appends,
    "SETITEM": Machine._set_item,
    "SETITEMS": Machine._set_items_of_mark,
    "ADDITEMS": Machine._add_items,
    "GLOBAL": Machine._global,
    "STACK_GLOBAL": Machine._stack_global,
    "REDUCE": Machine._reduce,
    "NEWOBJ": Machine._reduce,
    "NEWOBJ_EX": Machine._new_ex,
    "INST": Machine._inst,
    "OBJ": Machine._obj,
    "BUILD": Machine._build,
    "PERSID": Machine._persistent,
    "BINPERSID": Machine._binary_persistent,
}

# Functions of the standard library that only create containers.


def _ordered(machine, arguments):
    pairs = arguments[0] if arguments else ()
    machine.count(len(pairs))
    pairs = list(pairs.items()) if isinstance(pairs, dict) else pairs
    keys = machine.keys([key for key, _ in pairs])
    values = [value for _, value in pairs]
    return collections.OrderedDict(zip(keys, values, strict=True))


def _set(machine, arguments):
    (items,) = arguments or ((),)
    machine.count(len(items))
    return set(machine.keys(list(items)))


CONTAINERS = {
    ("collections", "OrderedDict"): Known(_ordered),
    ("builtins", "set"): Known(_set),
    ("__builtin__", "set"): Known(_set),
}
