"""The sheet of a run: what was told and what came of it, side by side."""

import hashlib
import json
import math
import os
from typing import NamedTuple

import jax
import numpy as np
from PIL import Image, ImageDraw

from ldm_jax.data import inputs
from ldm_jax.data.draw import fit, font, hatch, show_input
from ldm_jax.errors import ConfigError
from ldm_jax.images import make_grid, read_image, write_png
from ldm_jax.sampling.conditions import make_example, make_row, told_as
from ldm_jax.sampling.task import box_names, class_names, num_classes

# Samples on a sheet, and about how wide it is in pixels.
_MOST, _WIDTH = 16, 1500

_GAP, _TITLE, _LINE, _LINES = 8, 18, 18, 4
_INK, _PALE, _FRAME = (30, 30, 36), (120, 120, 128), (205, 205, 210)


class Card(NamedTuple):
    """One sample on the sheet.

    Attributes:
      panels: List of (title, uint8 [H, W, 3]), all of one size.
      text: What stands below.
    """

    panels: list
    text: str


def write_sheet(trained, request, seed, outdir):
    """Writes `sheet.png` of the first samples, where there is anything to tell.

    Args:
      trained: A Trained.
      request: A Request.
      seed: Seed of the run.
      outdir: Path of the folder that holds the samples.
    """
    shown = range(min(request.count, _MOST))
    cards = [_make_card(trained, request, seed, outdir, k) for k in shown]
    if not any(card.text or len(card.panels) > 1 for card in cards):
        return
    write_png(outdir / "sheet.png", make_sheet(cards))
    print(f"sheet: {outdir / 'sheet.png'}")


def _make_card(trained, request, seed, outdir, k):
    told = told_as(request, k)
    example = make_example(trained, request, told)
    row = make_row(trained, request, seed, told, example)
    sample = read_image(path_of(outdir, k))
    shape = _panel_shape(*sample.shape[:2])
    names = box_names(trained)
    shown = []
    if request.invert and request.path:
        ends = (make_example(trained, request, end) for end in request.path[:2])
        images = (fit(example["image"], shape) for example in ends)
        shown += zip(("from", "to"), images, strict=True)
    elif request.starts or "hole" in row:
        shown.append(("image", _given(row, shape)))
    for key, make in trained.inputs.items():
        if "hole" in row and isinstance(make, inputs.MaskedImage):
            continue
        panel = show_input(make, row["inputs"][key], shape, names)
        if panel is not None:
            shown.append((key, panel))
    if "guide" in row:
        shown.append(("guide", fit(row["guide"], shape)))
    shown.append((f"sample {k}", fit(sample, shape)))
    if request.source is not None:
        shown.append(("held out", fit(example["image"], shape)))
    return Card(shown, _text(trained, request, example, told))


def _given(row, shape):
    image = fit(row["images"], shape)
    if "hole" not in row:
        return image
    # Enlarged first, so that the lines stay fine.
    hole = row["hole"].repeat(3, axis=-1).astype(np.uint8) * 255
    return hatch(image, fit(hole, shape)[..., :1] > 127)


def _text(trained, request, example, k):
    parts = []
    if num_classes(trained) is not None and "label" in example:
        label, names = int(example["label"]), class_names(trained)
        parts.append(names[label] if names else str(label))
    if any(isinstance(make, inputs.Caption) for make in trained.inputs.values()):
        parts.append(example["caption"])
    if "negative_prompt" in request.columns:
        parts.append(f"(not: {request.columns['negative_prompt'][k]})")
    return " ".join(parts)


def _panel_shape(height, width):
    """Small pictures are enlarged by a whole number, large ones are made smaller."""
    longer = max(height, width)
    scale = round(192 / longer) if longer <= 128 else min(1, 320 / longer)
    return max(1, round(height * scale)), max(1, round(width * scale))


def make_sheet(cards):
    """Lays cards out in rows.

    Args:
      cards: List of Card with the same number of panels, all of one size.

    Returns:
      uint8 [H, W, 3].
    """
    height, width = cards[0].panels[0][1].shape[:2]
    count = len(cards[0].panels)
    card_width = count * (width + _GAP) - _GAP
    columns = max(1, min(len(cards), _WIDTH // (card_width + 3 * _GAP)))
    texts = [_wrap(card.text, card_width) for card in cards]
    card_height = _TITLE + height + _LINE * max(map(len, texts)) + _GAP
    step = card_width + 3 * _GAP, card_height + _GAP
    rows = -(-len(cards) // columns)
    size = columns * step[0] + _GAP, rows * step[1] + _GAP
    sheet = Image.new("RGB", size, (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    for index, (card, lines) in enumerate(zip(cards, texts, strict=True)):
        left = 2 * _GAP + (index % columns) * step[0]
        top = _GAP + (index // columns) * step[1]
        _draw_card(sheet, draw, card, lines, left, top)
    return np.asarray(sheet)


def _draw_card(sheet, draw, card, lines, left, top):
    for place, (title, panel) in enumerate(card.panels):
        height, width = panel.shape[:2]
        x = left + place * (width + _GAP)
        draw.text((x, top), title, fill=_PALE, font=font(12))
        frame = (x - 1, top + _TITLE - 1, x + width, top + _TITLE + height)
        draw.rectangle(frame, outline=_FRAME)
        sheet.paste(Image.fromarray(panel), (x, top + _TITLE))
    for index, line in enumerate(lines):
        y = top + _TITLE + height + 2 + index * _LINE
        draw.text((left, y), line, fill=_INK, font=font(13))


def _wrap(text, width):
    """Breaks a text into lines of so many pixels; what is too long is cut."""
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


_SETTINGS = "settings.json"


_MAX_GRID = 64


def path_of(outdir, k):
    """Path of sample k."""
    return outdir / f"{k:06d}.png"


def claim(outdir, settings):
    """Records the settings in a new folder, compares them in one that has some.

    Args:
      outdir: Path of the folder; made if it is not there.
      settings: Dict for JSON.

    Raises:
      ConfigError: If the folder holds samples of other settings.
    """
    path = outdir / _SETTINGS
    # As they come back from the file: without tuples.
    settings = json.loads(json.dumps(settings))
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        for key in [*settings, *(found.keys() - settings.keys())]:
            if found.get(key) != settings.get(key):
                raise ConfigError(
                    f"{outdir} holds samples of other settings ({key}: "
                    f"{found.get(key)} there, {settings.get(key)} here); use another "
                    "--outdir"
                )
        return
    outdir.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{jax.process_index()}.tmp")
    temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def digest(tree):
    """Hash of a tree of arrays, to record which weights were used."""
    whole = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        whole.update(np.ascontiguousarray(leaf))
    return whole.hexdigest()[:16]


def write_grid(outdir, count, labels=None, class_names=()):
    """Writes `grid.png` of the first samples; returns its path.

    Args:
      outdir: Path of the folder.
      count: Number of samples.
      labels: Class numbers, repeated in turn, of which few make the columns; or None.
      class_names: Their names, if known.
    """
    shown = range(min(count, _MAX_GRID))
    columns = math.ceil(math.sqrt(len(shown)))
    if labels is not None and 1 < len(labels) <= 16:
        columns = min(len(labels), len(shown))
        names = [class_names[i] if class_names else str(i) for i in labels]
        print("columns: " + ", ".join(names[:columns]))
    grid = outdir / "grid.png"
    pictures = np.stack([read_image(path_of(outdir, k)) for k in shown])
    write_png(grid, make_grid(pictures, columns))
    print(f"grid: {grid}")
    return grid


def write_array(outdir, count, conditions):
    """Writes `samples.npz`.

    Args:
      outdir: Path of the folder.
      count: Number of samples.
      conditions: Further arrays by name, [count, ...].
    """
    shape = read_image(path_of(outdir, 0)).shape
    images = np.empty((count, *shape), np.uint8)
    for k in range(count):
        images[k] = read_image(path_of(outdir, k))
    temporary = outdir / "samples.tmp.npz"
    np.savez(temporary, arr_0=images, **conditions)
    os.replace(temporary, outdir / "samples.npz")
    others = f"; {', '.join(sorted(conditions))}" if conditions else ""
    print(f"array: {outdir / 'samples.npz'} {images.shape} uint8{others}")
