"""The plot of a sweep, if matplotlib is installed."""

import io
import math
import numbers
import os
from collections.abc import Sequence
from typing import Any

from ldm_jax.evaluation.report import better
from ldm_jax.evaluation.sweep.grid import AXES
from ldm_jax.evaluation.sweep.rows import Row
from ldm_jax.evaluation.sweep.tables import best_of
from ldm_jax.files import write_bytes

# The line that is printed if matplotlib is not installed.
LEFT_OUT = (
    "the plot is left out, matplotlib is not installed: pip install 'ldm-jax[plots]', "
    "and the same command again"
)

_LABELS = {
    "sampler": "sampler",
    "num_steps": "sampling steps",
    "guidance_scale": "guidance scale",
}


def curves_of(
    rows: Sequence[Row], name: str
) -> tuple[str, dict[str, list[tuple[float, float]]]]:
    """Arranges a result as curves.

    Over the guidance scale if it varies, else over the number of steps; one curve for
    each combination of the other options.

    Args:
      rows: The rows, at least one.
      name: Name of the result.

    Returns:
      (axis, curves): the row of AXES on the x axis, and label -> points (x, y) sorted.
    """
    axis = across(rows)
    others = [other for other in AXES if other != axis]
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        label = ", ".join(_describe(other, row.values[other]) for other in others)
        points = curves.setdefault(label, [])
        points.append((row.values[axis], row.results[name].value))
    return axis, {label: sorted(points) for label, points in curves.items()}


def across(rows: Sequence[Row]) -> str:
    """Chooses the x axis of the plot.

    Args:
      rows: The rows, at least one.

    Returns:
      "guidance_scale" if it is a number and varies, else "num_steps".
    """
    scales = {row.values["guidance_scale"] for row in rows}
    is_number = all(isinstance(scale, numbers.Real) for scale in scales)
    steps = {row.values["num_steps"] for row in rows}
    if is_number and (len(scales) > 1 or len(steps) == 1):
        return "guidance_scale"
    return "num_steps"


def _describe(axis: str, value: Any) -> str:
    if axis == "num_steps":
        return f"{value} step{'s' * (value != 1)}"
    if axis == "guidance_scale":
        return f"guidance {value:g}" if isinstance(value, float) else f"{value}"
    return str(value)


def write_plot(path: str | os.PathLike, title: str, rows: Sequence[Row]) -> bool:
    """Writes an image with a plot of each result, the best row marked with a ring.

    Args:
      path: PNG file.
      title: What was measured.
      rows: The rows, at least one.

    Returns:
      Whether it was drawn: False without matplotlib.

    Raises:
      DiskError: If it cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    names = list(rows[0].results)
    columns = min(3, len(names))
    lines = math.ceil(len(names) / columns)
    figure = Figure(figsize=(5.5 * columns, 4 * lines), layout="constrained")
    plots = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, name in zip(plots, names, strict=False):
        _draw_axes(axes, rows, name)
    for axes in plots[len(names) :]:
        axes.set_axis_off()
    figure.suptitle(title, fontsize="small", wrap=True)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    write_bytes(path, buffer.getvalue())
    return True


def _draw_axes(axes, rows, name):
    axis, curves = curves_of(rows, name)
    for label, points in curves.items():
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=label)
    best = best_of(rows, name)
    if best is not None:
        point = best.values[axis], best.results[name].value
        ring = {"markersize": 12, "markerfacecolor": "none", "color": "black"}
        axes.plot(*point, linestyle="none", marker="o", label="best", **ring)
    axes.set_xlabel(_LABELS[axis])
    label = rows[0].results[name].label or name
    axes.set_ylabel(f"{label} ({better(name)} is better)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
