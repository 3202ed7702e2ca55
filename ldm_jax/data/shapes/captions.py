"""Captions for the scenes of `scenes.py`."""

import re
from typing import NamedTuple

from ldm_jax.data.shapes import scenes

# Words of captions besides names of colours, grounds and kinds.
WORDS = """
    a an huge large small tiny with in front of and , on at the top bottom left right
    middle background that fades from to stripes checks clouds
"""


def vocabulary() -> list[str]:
    """Lists the words and punctuation marks of captions.

    Returns:
      List in alphabetical order.
    """
    names = (*scenes.COLORS, *scenes.GROUNDS, *scenes.CLASS_NAMES)
    return sorted({*WORDS.split(), *" ".join(names).split()})


def describe(scene: scenes.Scene, drawing: scenes.Drawing) -> str:
    """Describes a drawn scene in plain English.

    Args:
      scene: The scene.
      drawing: Its drawing, with the visible shapes.

    Returns:
      A sentence such as "a huge red star in front of a small blue ring at the top left,
      with a tiny green heart on the right, on pale yellow and white stripes".
    """
    main = drawing.visible[0]
    text = _name(main, "huge" if main.radius > 0.305 else "large")
    behind, beside = [], []
    pairs = zip(drawing.visible, drawing.hidden, strict=True)
    for shape, fraction in list(pairs)[1:]:
        size = "small" if shape.radius > 0.105 else "tiny"
        phrase = f"{_name(shape, size)} {_place(shape)}"
        (behind if fraction > 0.04 else beside).append(phrase)
    if behind:
        text += f" in front of {_join(behind)}"
    if beside:
        text += f"{',' if behind else ''} with {_join(beside)}"
    if behind or beside:
        text += ","
    return f"{text} on {_describe_ground(scene.ground)}"


class Caption(NamedTuple):
    """The contents of a caption.

    Attributes:
      shapes: (colour, kind) of every shape, the main one first.
      pattern: Pattern of the ground, a row of `drawing.PATTERNS`.
      grounds: Its one or two colours, names of `scenes.GROUNDS`.
    """

    shapes: tuple[tuple[str, str], ...]
    pattern: str
    grounds: tuple[str, ...]


def read(caption: str) -> Caption:
    """Parses a caption: the inverse of `describe`.

    Args:
      caption: Sentence written by `describe`.

    Returns:
      A Caption.

    Raises:
      ValueError: If no shape or no ground is found.
    """
    shapes = tuple(_SHAPE.findall(caption))
    for pattern, sentence in _GROUND_SENTENCES.items():
        match = re.search(sentence, caption)
        if match and shapes:
            return Caption(shapes, pattern, match.groups())
    raise ValueError(f'"{caption}" is not a caption of the data set `shapes`')


def _name(shape, size):
    article = "an" if size[0] in "aeiou" else "a"
    return f"{article} {size} {shape.color} {shape.kind}"


def _place(shape):
    row = "top" if shape.y < 0.36 else "bottom" if shape.y > 0.64 else ""
    column = "left" if shape.x < 0.36 else "right" if shape.x > 0.64 else ""
    if row:
        return f"at the {row} {column}".rstrip()
    return f"on the {column}" if column else "in the middle"


def _join(phrases):
    if len(phrases) < 3:
        return " and ".join(phrases)
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def _describe_ground(ground):
    first, last = ground.colors[0], ground.colors[-1]
    return {
        "plain": f"a {first} background",
        "gradient": f"a background that fades from {first} to {last}",
        "stripes": f"{first} and {last} stripes",
        "checks": f"{first} and {last} checks",
        "clouds": f"{first} and {last} clouds",
    }[ground.pattern]


def _any_of(names):
    return f"({'|'.join(names)})"


_SHAPE = re.compile(
    r" (?:huge|large|small|tiny) "
    f"{_any_of(scenes.COLORS)} {_any_of(scenes.CLASS_NAMES)}"
)
_GROUND = _any_of(scenes.GROUNDS)
_GROUND_SENTENCES = {
    "plain": f" on a {_GROUND} background$",
    "gradient": f" on a background that fades from {_GROUND} to {_GROUND}$",
    "stripes": f" on {_GROUND} and {_GROUND} stripes$",
    "checks": f" on {_GROUND} and {_GROUND} checks$",
    "clouds": f" on {_GROUND} and {_GROUND} clouds$",
}
