"""Kernels of a compiled program, and the bytes that they move, from its text."""

import collections
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

# Bytes of a number by the name of its type. s8 is left out: in results it is a
# workspace, which is not moved.
_BYTES = dict(pred=1, u8=1, bf16=2, f16=2, s32=4, u32=4, f32=4, s64=8, u64=8, f64=8)
_BYTES["c64"] = 8
# Operations without a kernel.
_FREE = {"parameter", "get-tuple-element", "bitcast", "tuple", "constant", "after-all"}
_LINE = re.compile(
    r"\s*(?:ROOT )?%?(?P<name>[\w.\-]+) = "
    r"(?P<type>\((?:[^()]|\([^()]*\))*\)|\S+) (?P<operation>[\w\-]+)\((?P<rest>.*)"
)
# Part -> pattern of the operation that a kernel was traced from; first match counts.
PARTS = {
    "group norms": r"norm(_in|_out)?/jit\(_(forward|backward)",
    "layer norms": r"/norm_",
    "feed-forward": "feed_forward",
    "attention": "attention",
    "convolutions": "conv|shortcut|resample",
    "rest of the network": "UNet",
}
# Operations by which devices communicate.
COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-permute",
    "reduce-scatter",
)
_COLLECTIVE = re.compile(rf"({'|'.join(COLLECTIVES)})(-start)?(?:\.\d+)?$")


class Kernel(NamedTuple):
    """A kernel of a compiled program.

    Attributes:
      name: Its name.
      read: Bytes of its operands; of a sliced operand only those of the slice.
      written: Bytes of its results.
      source: Name of the operation that it was traced from, or "".
      body: Text of its computation, with values renamed by their order.
    """

    name: str
    read: int
    written: int
    source: str
    body: str

    @property
    def moved(self) -> int:
        """Bytes read and written."""
        return self.read + self.written

    @property
    def part(self) -> str:
        """Key of PARTS, or "optimiser and others"."""
        found = (part for part, words in PARTS.items() if re.search(words, self.source))
        return next(found, "optimiser and others")

    @property
    def sent(self) -> tuple[str, int] | None:
        """(row of COLLECTIVES, bytes of its operands or results, whichever are more).

        None for other kernels, including the end of an asynchronous collective.
        """
        found = _COLLECTIVE.match(self.name)
        if found is None:
            return None
        # The start of an asynchronous collective has its operands among its results.
        results = self.written - self.read if found[2] else self.written
        return found[1], max(self.read, results)


def read_kernels(text: str) -> list[Kernel]:
    """Lists the kernels of a program.

    A loop counts as one kernel that moves its carry once, and an asynchronous operation
    counts at its start and at its end.

    Args:
      text: Text of a compiled program, `compiled.as_text()`.

    Returns:
      Kernels of its entry computation, in order.
    """
    computations = r"\n%?([\w.\-]+) \([^\n]*\{\n(.*?)\n\}"
    bodies = dict(re.findall(computations, text, re.DOTALL))
    entry = text[text.index("\nENTRY ") :]
    types, found = {}, []
    for line in map(_LINE.match, entry[: entry.index("\n}")].splitlines()):
        if line is None:
            continue
        types[line["name"]] = line["type"]
        if line["operation"] in _FREE:
            continue
        arguments = line["rest"].split("), ")[0]
        operands = re.findall(r"%([\w.\-]+)", arguments)
        called = re.search(r"calls=%([\w.\-]+)", line["rest"])
        body = bodies.get(called[1], "") if called else arguments
        source = re.search(r'op_name="([^"]*)"', line["rest"])
        found.append(
            Kernel(
                name=line["name"],
                read=sum(_read(body, i, types[o]) for i, o in enumerate(operands)),
                written=_size(line["type"]),
                source=source[1] if source else "",
                body=_renamed(body),
            )
        )
    return found


def body_of_loop(text: str) -> str:
    """Extracts the body of a program's longest loop, e.g. that of a sampler.

    Args:
      text: Text of a compiled program.

    Returns:
      Text of a program with the loop's body as its entry, for `read_kernels`.

    Raises:
      ValueError: If there is no loop.
    """
    bodies = [
        re.search(rf"\n%?{re.escape(name)} \([^\n]*\{{\n.*?\n\}}", text, re.DOTALL)[0]
        for name in re.findall(r" while\(.*body=%([\w.\-]+)", text)
    ]
    if not bodies:
        raise ValueError("the program has no loop")
    body = max(bodies, key=len)
    start = text.index("\nENTRY ")
    return text[:start].replace(body, "") + "\nENTRY " + body.lstrip("\n%")


def _arrays(type_text):
    """(name of the type, number of elements) of each array of a type or a tuple."""
    for name, sizes in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", type_text):
        yield name, math.prod(map(int, filter(None, sizes.split(","))))


def _size(type_text):
    return sum(count * _BYTES.get(name, 0) for name, count in _arrays(type_text))


def _read(body, index, type_text):
    """Bytes that a fusion reads of an operand: all of it, or only its slices."""
    own = re.search(rf"%?([\w.\-]+) = .* parameter\({index}\)", body)
    uses = list(_uses(body, own[1])) if own else []
    if not uses or not all(use["operation"].endswith("slice") for use in uses):
        return _size(type_text)
    # Elements read by several slices come from memory once.
    slices = sum(count for use in uses for _, count in _arrays(use["type"]))
    whole = sum(count for _, count in _arrays(type_text))
    return round(min(1, slices / whole) * _size(type_text))


def _uses(body, name) -> Iterator[re.Match]:
    """Lines of a body that read a value, through bitcasts and conversions."""
    for line in map(_LINE.match, body.splitlines()):
        if line and re.search(rf"%{re.escape(name)}\b(?![.\-])", line["rest"]):
            if line["operation"] in ("bitcast", "convert"):
                yield from _uses(body, line["name"])
            else:
                yield line


def _renamed(body):
    numbers = {}
    body = re.sub(r", metadata=\{[^}]*\}", "", body)
    return re.sub(
        r"%[\w.\-]+", lambda m: numbers.setdefault(m[0], f"%{len(numbers)}"), body
    )


def summarise(found: list[Kernel]) -> dict[str, Any]:
    """Sums the bytes that kernels move.

    Args:
      found: Kernels.

    Returns:
      Row: GB moved, number of kernels and of different ones, (GB, kernels) of each
      part, and of each kind of communication of a device, if any.
    """
    row = {
        "moved_gb": round(sum(kernel.moved for kernel in found) / 1e9, 2),
        "kernels": len(found),
        "different": len({kernel.body for kernel in found}),
        "parts": _sums((kernel.part, kernel.moved) for kernel in found),
    }
    sent = _sums(kernel.sent for kernel in found if kernel.sent)
    return row | {"sent": sent} if sent else row


def _sums(pairs):
    """Name -> (GB, count) of pairs (name, bytes), the largest first."""
    sizes, count = collections.Counter(), collections.Counter()
    for name, size in pairs:
        sizes[name] += size
        count[name] += 1
    return {
        name: (round(size / 1e9, 2), count[name]) for name, size in sizes.most_common()
    }
