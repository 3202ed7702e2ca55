"""Writes a grid of the samples of a run, and a contact sheet with their conditions.

The samples have a folder of their own, as evaluators read every image in a folder; all
other files are beside it.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from ldm_jax.annotations import UInt8
from ldm_jax.data.draw import draw_image, draw_masked, font
from ldm_jax.data.inputs import inputs_of
from ldm_jax.data.labels import name_of_class
from ldm_jax.images import (
    RGB,
    Pixels,
    make_grid,
    read_image,
    suffix_of,
    write_png,
)
from ldm_jax.sampling.conditions import conditions_from, make_example, make_row
from ldm_jax.sampling.sample_files import SampleFiles
from ldm_jax.sampling.task import Task, box_names, class_names, num_classes
from ldm_jax.store import Place
from ldm_jax.trained import Trained

# Maximum samples on a contact sheet, and its approximate width in pixels.
MOST_ON_SHEET, _WIDTH = 16, 1500

_GAP, _TITLE, _LINE, _LINES = 8, 18, 18, 4
_INK, _PALE, _FRAME = (30, 30, 36), (120, 120, 128), (205, 205, 210)


class Entry(NamedTuple):
    """One sample on the contact sheet.

    Attributes:
      images: List of (title, uint8 [H, W, 3]), all of one size.
      text: Text below the images.
    """

    images: list[tuple[str, UInt8[np.ndarray, "H W 3"]]]
    text: str


def write_contact_sheet(
    trained: Trained, task: Task, seed: int, outdir: Place, store: SampleFiles
) -> None:
    """Writes `sheet.png`: the first samples beside their conditions, if there are any.

    Args:
      trained: A Trained.
      task: A Task.
      seed: Seed of the run.
      outdir: Path of the folder.
      store: Where the samples are.
    """
    shown = store.images(min(task.count, MOST_ON_SHEET))
    entries = [
        _make_entry(trained, task, seed, outdir, k, sample)
        for k, sample in enumerate(shown)
    ]
    if not any(entry.text or len(entry.images) > 1 for entry in entries):
        return
    write_png(outdir / "sheet.png", make_contact_sheet(entries))
    print(f"sheet: {outdir / 'sheet.png'}")


def _make_entry(trained, task, seed, outdir, k, sample):
    source = conditions_from(task, k)
    example = make_example(trained, task, source)
    row = make_row(trained, task, seed, source, example)
    pixels, shown_of = trained.pixels, trained.pixels.shown
    shape = _shape_on_sheet(*sample.shape[:2])
    shown = _starting_points(trained, task, row, shape)
    with_mask = inputs_of(trained.inputs, "mask")
    for key, make in trained.inputs.items():
        if "mask" in row and key in with_mask:
            # The mask is shown already.
            continue
        image = make.draw(row["inputs"][key], shape, box_names(trained))
        if image is not None:
            shown.append((key, image))
    if "guide" in row:
        shown.append(("guide", draw_image(shown_of(row["guide"]), shape)))
    unguided = unguided_path_of(outdir, k, suffix_of(pixels))
    if unguided.exists():
        image = shown_of(read_image(unguided, pixels))
        shown.append(("unguided", draw_image(image, shape)))
    shown.append((f"sample {k}", draw_image(shown_of(sample), shape)))
    if task.source is not None:
        shown.append(("held out", draw_image(shown_of(example["image"]), shape)))
    return Entry(shown, _text(trained, task, example, source))


def _starting_points(trained, task, row, shape):
    """The images that sampling starts from or fills."""
    shown_of = trained.pixels.shown
    if task.invert and task.path:
        ends = (make_example(trained, task, end) for end in task.path[:2])
        images = (draw_image(shown_of(example["image"]), shape) for example in ends)
        return list(zip(("from", "to"), images, strict=True))
    if "mask" in row:
        return [("image", draw_masked(shown_of(row["images"]), row["mask"], shape))]
    if not task.starts:
        return []
    return [("image", draw_image(shown_of(row["images"]), shape))]


def _text(trained, task, example, k):
    parts = []
    if num_classes(trained) is not None and "label" in example:
        parts.append(name_of_class(int(example["label"]), class_names(trained)))
    if inputs_of(trained.inputs, "caption"):
        parts.append(example["caption"])
    if "negative_prompt" in task.values:
        parts.append(f"(not: {task.values['negative_prompt'][k]})")
    return " ".join(parts)


def _shape_on_sheet(height, width):
    """Enlarges small images by an integer factor, and shrinks large ones."""
    longer = max(height, width)
    scale = round(192 / longer) if longer <= 128 else min(1, 320 / longer)
    return max(1, round(height * scale)), max(1, round(width * scale))


def make_contact_sheet(entries: Sequence[Entry]) -> UInt8[np.ndarray, "height width 3"]:
    """Lays out samples and their conditions in rows.

    Args:
      entries: Entry of each sample, all with the same number of images, of one size.

    Returns:
      uint8 [height, width, 3].
    """
    height, width = entries[0].images[0][1].shape[:2]
    count = len(entries[0].images)
    entry_width = count * (width + _GAP) - _GAP
    columns = max(1, min(len(entries), _WIDTH // (entry_width + 3 * _GAP)))
    texts = [_wrap(entry.text, entry_width) for entry in entries]
    entry_height = _TITLE + height + _LINE * max(map(len, texts)) + _GAP
    step = entry_width + 3 * _GAP, entry_height + _GAP
    rows = -(-len(entries) // columns)
    size = columns * step[0] + _GAP, rows * step[1] + _GAP
    sheet = Image.new("RGB", size, (255, 255, 255))
    canvas = ImageDraw.Draw(sheet)
    for index, (entry, lines) in enumerate(zip(entries, texts, strict=True)):
        left = 2 * _GAP + (index % columns) * step[0]
        top = _GAP + (index // columns) * step[1]
        _draw_entry(sheet, canvas, entry, lines, (left, top))
    return np.asarray(sheet)


def _draw_entry(sheet, canvas, entry, lines, corner):
    left, top = corner
    for place, (title, image) in enumerate(entry.images):
        height, width = image.shape[:2]
        x = left + place * (width + _GAP)
        canvas.text((x, top), title, fill=_PALE, font=font(12))
        frame = (x - 1, top + _TITLE - 1, x + width, top + _TITLE + height)
        canvas.rectangle(frame, outline=_FRAME)
        sheet.paste(Image.fromarray(image), (x, top + _TITLE))
    for index, line in enumerate(lines):
        y = top + _TITLE + height + 2 + index * _LINE
        canvas.text((left, y), line, fill=_INK, font=font(13))


def _wrap(text, width):
    """Breaks a text into lines of a width in pixels; a long text is truncated."""
    letters, lines = font(13), []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and letters.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) > _LINES:
        lines = [*lines[: _LINES - 1], lines[_LINES - 1] + " ..."]
    return lines


# Maximum samples in a grid.
_MAX_GRID = 64


def unguided_path_of(outdir: Place, k: int, suffix: str = ".png") -> Place:
    """Returns the path of a sample drawn without guidance.

    Args:
      outdir: Path of the folder.
      k: Number of the sample.
      suffix: File suffix, see `images.suffix_of`.

    Returns:
      Path of its file.
    """
    return outdir / "unguided" / f"{k:06d}{suffix}"


def write_grid(
    outdir: Place,
    store: SampleFiles,
    labels: Sequence[int] | None = None,
    class_names: Sequence[str] = (),
    pixels: Pixels = RGB,
) -> Place:
    """Writes `grid.png` of the first samples.

    Args:
      outdir: Path of the folder.
      store: Where the samples are.
      labels: Class numbers, repeated in turn; if there are 2 to 16, each is a column.
        None without classes.
      class_names: Their names, if known.
      pixels: Format of the images.

    Returns:
      Its path.
    """
    shown = min(store.count, _MAX_GRID)
    columns = math.ceil(math.sqrt(shown))
    if labels is not None and 1 < len(labels) <= 16:
        columns = min(len(labels), shown)
        names = [name_of_class(label, class_names) for label in labels]
        print("columns: " + ", ".join(names[:columns]))
    grid = outdir / "grid.png"
    images = pixels.shown(np.stack([*store.images(shown)]))
    write_png(grid, make_grid(images, columns))
    way = pixels.describe()
    print(f"grid: {grid}{way and f' ({way})'}")
    return grid
