"""The report of a sweep: the best row, a Markdown table, and a JSON record."""

import math
from collections.abc import Sequence
from typing import Any

from ldm_jax.evaluation.report import better, record_of_results, write_number
from ldm_jax.evaluation.sweep.grid import title_of
from ldm_jax.evaluation.sweep.rows import Row


def best_of(rows: Sequence[Row], name: str) -> Row | None:
    """Finds the row with the best value of a result; the first of equal ones.

    Args:
      rows: The rows.
      name: Name of the result.

    Returns:
      The row; None if no row has a finite value.
    """
    finite = [row for row in rows if math.isfinite(row.results[name].value)]
    sign = 1 if better(name) == "lower" else -1
    return min(finite, key=lambda row: sign * row.results[name].value, default=None)


def best_line(rows: Sequence[Row]) -> str:
    """Names the best row by the first result.

    Args:
      rows: The rows, at least one.

    Returns:
      A sentence.
    """
    name = next(iter(rows[0].results))
    best = best_of(rows, name)
    if best is None:
        return f"No row has a finite {name}."
    found = best.results[name]
    value, label = write_number(found.value), found.label or name
    return (
        f"Best by {label}: {title_of(best.values)} ({value}; {better(name)} is better)."
    )


def markdown_of(title: str, rows: Sequence[Row]) -> str:
    """Formats the table; the best number of each column is bold.

    Args:
      title: What was measured.
      rows: The rows, at least one.

    Returns:
      Text of several lines.
    """
    names = list(rows[0].results)
    labels = [rows[0].results[name].label or name for name in names]
    best = {name: best_of(rows, name) for name in names}
    lines = [
        title,
        "",
        f"| sampler | steps | guidance | {' | '.join(labels)} | images |",
        f"| {' | '.join(['---'] * (len(names) + 4))} |",
    ]
    for row in rows:
        cells = [_plain(value) for value in row.values.values()]
        for name in names:
            text = _measured(row.results[name])
            cells.append(f"**{text}**" if row is best[name] else text)
        cells.append(f"{row.results[names[0]].count:,}")
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", best_line(rows)]
    notes = {result.note for row in rows for result in row.results.values()}
    lines += [f"Note: {note}." for note in sorted(notes - {""})]
    return "\n".join(lines) + "\n"


def _plain(value):
    return f"{value:g}" if isinstance(value, float) else str(value)


def _measured(result):
    spread = "" if result.deviation is None else f" ± {result.deviation:.2g}"
    return write_number(result.value) + spread


def record_of_rows(rows: Sequence[Row]) -> dict[str, Any]:
    """Makes the record of the rows for `sweep.json`.

    Args:
      rows: The rows, at least one.

    Returns:
      JSON-like dict: "rows", and "best", the values of the best row by each result.
    """
    best = {name: best_of(rows, name) for name in rows[0].results}
    return {
        "rows": [row.values | record_of_results(row.results) for row in rows],
        "best": {name: row and row.values for name, row in best.items()},
    }
