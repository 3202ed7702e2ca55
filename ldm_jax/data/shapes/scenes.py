"""Samples scenes of one to four shapes and draws them.

A scene is sampled independently of the size of the image, so one seed gives the same
scene at any resolution. The main shape, which defines the class of the example, is the
largest by far, in front of the others, near the middle, and contrasts with the ground.
"""

from typing import NamedTuple

import numpy as np

from ldm_jax.annotations import Float, UInt8
from ldm_jax.data.shapes import drawing

CLASS_NAMES = tuple(drawing.KINDS)

# Largest tilt in radians with which a shape keeps its name: most people call a square
# on its corner a diamond.
TILTS = {
    "circle": 0.0,
    "square": 0.26,
    "triangle": 0.35,
    "star": 0.6,
    "heart": 0.35,
    "cross": 0.26,
    "ring": 0.0,
    "crescent": 0.5,
}

COLORS = {
    "red": (219, 45, 48),
    "orange": (243, 128, 28),
    "yellow": (248, 208, 40),
    "green": (48, 163, 74),
    "turquoise": (26, 184, 181),
    "blue": (43, 92, 214),
    "purple": (136, 66, 194),
    "pink": (240, 112, 174),
    "white": (246, 246, 246),
    "black": (42, 42, 48),
}

GROUNDS = {
    "white": (247, 247, 245),
    "light grey": (205, 208, 212),
    "pale blue": (190, 215, 240),
    "pale green": (196, 228, 196),
    "pale yellow": (250, 238, 190),
    "pale pink": (248, 210, 216),
    "dark grey": (66, 69, 76),
    "dark green": (22, 70, 52),
    "dark blue": (26, 44, 98),
    "dark purple": (66, 34, 92),
    "dark red": (98, 26, 44),
}

# Dark colours only mix with their neighbours in this list: dark red and dark green, for
# example, look muddy together.
DARK = ("dark green", "dark blue", "dark purple", "dark red")


class Shape(NamedTuple):
    """One shape.

    Attributes:
      kind: One of CLASS_NAMES.
      color: One of COLORS.
      rgb: That colour, slightly varied; three floats in [0, 255].
      x: Centre from the left edge, in image sides.
      y: Centre from the top edge, in image sides.
      radius: Length of the shape's unit, in image sides.
      angle: Rotation in radians, counter-clockwise.
      depth: Distance from the camera in [0, 1].
    """

    kind: str
    color: str
    rgb: tuple[float, ...]
    x: float
    y: float
    radius: float
    angle: float
    depth: float


class Ground(NamedTuple):
    """The background of the shapes.

    Attributes:
      pattern: A row of `drawing.PATTERNS`.
      colors: One or two names of GROUNDS.
      angle: See `drawing.background`, also for the next three.
      scale: Period of the pattern.
      phase: Its offset.
      grid: Heights of the clouds, [6, 6].
    """

    pattern: str
    colors: tuple[str, ...]
    angle: float
    scale: float
    phase: float
    grid: Float[np.ndarray, "6 6"]


class Scene(NamedTuple):
    """A ground and its shapes.

    Attributes:
      ground: The ground.
      shapes: The shapes, the main one first and the farthest last.
    """

    ground: Ground
    shapes: tuple[Shape, ...]


class Drawing(NamedTuple):
    """A drawn scene.

    Attributes:
      image: uint8 [S, S, 3].
      segmentation: uint8 [S, S]; 0 is the ground, k + 1 is class k.
      depth: uint8 [S, S]; distance from the camera, 255 is the ground.
      visible: The shapes that can be seen, main shape first, farthest last.
      boxes: float32 [shapes, 4] as (ymin, xmin, ymax, xmax) in [0, 1], around the
        visible part of each.
      hidden: Fraction of each visible shape that the main shape hides, float [shapes].
    """

    image: UInt8[np.ndarray, "size size 3"]
    segmentation: UInt8[np.ndarray, "size size"]
    depth: UInt8[np.ndarray, "size size"]
    visible: tuple[Shape, ...]
    boxes: Float[np.ndarray, "shapes 4"]
    hidden: Float[np.ndarray, " shapes"]


def _lab(rgb):
    """Converts sRGB in [0, 255] to CIE L*a*b* (D65), for perceptual contrasts."""
    rgb = np.asarray(rgb, np.float64) / 255
    linear = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    xyz = linear @ np.array(
        [[0.4339, 0.2126, 0.0178], [0.3762, 0.7152, 0.1095], [0.1899, 0.0722, 0.8727]]
    )
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def _contrasts(rows, columns, least):
    """For each row, the columns that differ from it by `least` or more (Delta E 76)."""
    return {
        name: tuple(
            other
            for other, second in columns.items()
            if np.linalg.norm(_lab(first) - _lab(second)) >= least
        )
        for name, first in rows.items()
    }


GROUNDS_FOR = _contrasts(COLORS, GROUNDS, 52)
COLORS_ON = _contrasts(GROUNDS, COLORS, 40)
COLORS_BESIDE = _contrasts(COLORS, COLORS, 35)


def sample_scene(rng: np.random.Generator, kind: str, max_shapes: int = 4) -> Scene:
    """Samples a scene.

    Args:
      rng: NumPy generator; the scene is a function of its state.
      kind: Kind of the main shape, one of CLASS_NAMES.
      max_shapes: Largest number of shapes.

    Returns:
      A Scene.
    """
    color = _pick(rng, COLORS)
    ground = _sample_ground(rng, color)
    diameter = rng.uniform(0.52, 0.7)
    x, y = 0.5 + rng.uniform(-1, 1, 2) * min(0.09, 0.5 - 0.52 * diameter)
    main = _sample_shape(rng, kind, color, x, y, diameter / 2, rng.uniform(0.1, 0.2))
    shapes = [main]
    others = int(rng.integers(max_shapes))
    # Steps of at least 0.06 keep the reliefs of two shapes apart.
    for depth in np.sort(rng.uniform(0.36, 0.76, others)) + 0.06 * np.arange(others):
        other = _sample_other(rng, shapes, ground, float(depth))
        if other is not None:
            shapes.append(other)
    return Scene(ground, tuple(shapes))


def _pick(rng, names):
    names = tuple(names)
    return names[int(rng.integers(len(names)))]


def _sample_shape(rng, kind, color, x, y, radius, depth):
    tint = np.asarray(COLORS[color]) + rng.uniform(-12, 12, 3)
    angle = TILTS[kind] * rng.uniform(-1, 1)
    return Shape(kind, color, tuple(tint), x, y, radius, angle, depth)


def _sample_other(rng, shapes, ground, depth):
    """Samples a small shape behind the others; None if there is no room for it."""
    main = shapes[0]
    color = _pick(
        rng,
        [
            name
            for name in COLORS_BESIDE[main.color]
            if all(name in COLORS_ON[behind] for behind in ground.colors)
        ],
    )
    taken = {shape.kind for shape in shapes}
    kind = _pick(rng, [name for name in CLASS_NAMES if name not in taken])
    for _ in range(20):
        radius = rng.uniform(0.075, 0.135)
        x, y = rng.uniform(0.9 * radius, 1 - 0.9 * radius, 2)
        gaps = [
            np.hypot(x - s.x, y - s.y) - (0.85 if s is main else 0.6) * s.radius
            for s in shapes
        ]
        if min(gaps) > 0.45 * radius:
            return _sample_shape(rng, kind, color, x, y, radius, depth)
    return None


def _sample_ground(rng, color):
    allowed = GROUNDS_FOR[color]
    pattern = _pick(rng, drawing.PATTERNS)
    first = _pick(rng, allowed)
    second = [name for name in allowed if _match(first, name)]
    if pattern == "plain" or not second:
        pattern, colors = "plain", (first,)
    else:
        colors = (first, _pick(rng, second))
    angle = rng.uniform(0, 2 * np.pi)
    scale, phase = rng.uniform(0.16, 0.36), rng.random()
    return Ground(pattern, colors, angle, scale, phase, rng.random((6, 6)))


def _match(first, second):
    """Whether two colours make a ground: both pale, or both dark and neighbours."""
    if first == second or first.startswith("dark") != second.startswith("dark"):
        return False
    if first in DARK and second in DARK:
        return abs(DARK.index(first) - DARK.index(second)) == 1
    return True


def draw_scene(scene: Scene, size: int) -> Drawing:
    """Draws a scene.

    Args:
      scene: The scene.
      size: Side of the image in pixels.

    Returns:
      A Drawing.
    """
    shapes, parts, owner, hidden = _visible(scene.shapes, size)
    canvas = _draw_ground(scene.ground, size)
    segmentation = np.zeros((size, size), np.uint8)
    depth = np.full((size, size), 255, np.uint8)
    for shape, part in zip(reversed(shapes), reversed(parts), strict=True):
        _cast_shadow(canvas, shape, size)
        relief = _paint(canvas, shape, part, size)
        rows, columns, distance = part[:3]
        inside = distance < 0
        segmentation[rows, columns][inside] = CLASS_NAMES.index(shape.kind) + 1
        relief = (255 * shape.depth - 12 * relief).astype(np.uint8)
        np.copyto(depth[rows, columns], relief, where=inside)
    return Drawing(
        np.clip(canvas + 0.5, 0, 255).astype(np.uint8).transpose(1, 2, 0).copy(),
        segmentation,
        depth,
        tuple(shapes),
        np.stack([_box(owner == index, size) for index in range(len(shapes))]),
        hidden,
    )


def _visible(shapes, size):
    """Leaves out the shapes of which too little is visible to name them.

    Returns:
      (shapes, parts, owner, hidden): the shapes that are left, their windows from
      `drawing.distances`, the index of the shape at each pixel (-1: ground), and the
      fraction of each shape that the main shape hides.
    """
    parts = [
        drawing.distances(s.kind, size, s.x, s.y, s.radius, s.angle) for s in shapes
    ]
    while True:
        owner = np.full((size, size), -1, np.int8)
        for index in reversed(range(len(parts))):
            rows, columns, distance = parts[index][:3]
            owner[rows, columns][distance < 0] = index
        shown, hidden = _fractions(parts, owner)
        keep = np.flatnonzero(shown > 0.4)
        if len(keep) == len(parts):
            return shapes, parts, owner, hidden
        # Without these shapes, more of the others is visible: count again.
        shapes, parts = [shapes[k] for k in keep], [parts[k] for k in keep]


def _fractions(parts, owner):
    """Fractions of each shape that are visible, and that the main shape hides."""
    shown, hidden = np.zeros(len(parts)), np.zeros(len(parts))
    for index, (rows, columns, distance, _, _) in enumerate(parts):
        owners = owner[rows, columns][distance < 0]
        if owners.size:
            shown[index] = np.mean(owners == index)
            hidden[index] = np.mean(owners == 0) if index else 0
    return shown, hidden


def _draw_ground(ground, size):
    colors = [np.asarray(GROUNDS[name], np.float32) for name in ground.colors]
    return drawing.background(
        ground.pattern,
        size,
        colors[0],
        colors[-1],
        ground.angle,
        ground.scale,
        ground.phase,
        ground.grid,
    )


def _cast_shadow(canvas, shape, size):
    x, y = shape.x + 0.1 * shape.radius, shape.y + 0.14 * shape.radius
    rows, columns, distance, _, _ = drawing.distances(
        shape.kind, size, x, y, shape.radius, shape.angle
    )
    shadow = drawing.coverage(distance, max(1.0, 0.3 * shape.radius * size))
    canvas[:, rows, columns] *= 1 - 0.35 * shadow


def _paint(canvas, shape, part, size):
    """Paints one shape over the canvas; returns its relief in [0, 1], [h, w]."""
    rows, columns, distance, u, v = part
    brightness, relief = drawing.shading(distance, u, v, shape.radius * size)
    cover = drawing.coverage(distance)
    color = np.asarray(shape.rgb, np.float32)[:, None, None]
    # Brightness above 1 adds white, as on a glossy surface.
    gloss = np.maximum(brightness - 1, 0) * 300
    target = canvas[:, rows, columns]
    target += (color * np.minimum(brightness, 1) + gloss - target) * cover
    return relief


def _box(mask, size):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    edges = (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1)
    return np.array(edges, np.float32) / size
