"""The report of an evaluation: a table, `metrics.json`, and published numbers beside.

| results of runs/class | measured | published | difference | within 5 % |
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from ldm_jax.evaluation.published_numbers import TOLERANCE, Published
from ldm_jax.metrics.protocols import PROTOCOLS
from ldm_jax.metrics.set_metrics import SET_METRICS, Result

# Metrics of single images -> in which direction they are better.
_BETTER = {"psnr": "higher", "ssim": "higher", "lpips": "lower", "l1": "lower"}


class Verdict(NamedTuple):
    """A number beside a published one.

    Attributes:
      name: Name of the result.
      measured: The number, or None if it was not measured.
      published: The published number.
      verdict: "pass", "fail" or "not comparable".
      reason: Why it is not comparable; else empty.
    """

    name: str
    measured: float | None
    published: float
    verdict: str
    reason: str


def better(name: str) -> str:
    """Returns the direction in which a result is better.

    Args:
      name: Name of the result.

    Returns:
      "lower" or "higher".
    """
    return _known_better(name) or "lower"


def _known_better(name):
    """`better` of known results; None for the measures of a kind of first stage."""
    # The name of a metric may be wrapped, if its features are random.
    name = name.removeprefix("random-features distance (").removesuffix(")")
    values = [row.values[name] for row in SET_METRICS.values() if name in row.values]
    return values[0].better if values else _BETTER.get(name)


def compare_published(
    results: Mapping[str, Result],
    published: Published,
    tolerance: float,
    reasons: tuple[str, ...] = (),
) -> list[Verdict]:
    """Compares results with published numbers; a better result passes.

    Args:
      results: Name -> result.
      published: The published numbers.
      tolerance: Fraction of a published number by which a result may be worse.
      reasons: Why none of them is comparable, e.g. other options of the sampler.

    Returns:
      A verdict for each published number.
    """
    verdicts = []
    for name, value in published.values.items():
        result = results.get(name)
        why = [*reasons, *([result.note] if result and result.note else [])]
        if result is None:
            random = f"random-features distance ({name})" in results
            why = ["measured with random weights" if random else "not measured"]
        verdict = "not comparable"
        if not why:
            gap = result.value - value
            worse = gap if better(name) == "lower" else -gap
            verdict = "pass" if worse <= tolerance * abs(value) else "fail"
        measured = result and result.value
        verdicts.append(Verdict(name, measured, value, verdict, "; ".join(why)))
    return verdicts


def sampling_reasons(
    published: Published, sampling: Mapping[str, Any], protocol: str | None
) -> tuple[str, ...]:
    """Lists the differences in sampling from a published number.

    Args:
      published: The published numbers.
      sampling: Options of the sampler, as in the config section `sample`; for a first
        stage the size and number of the images it was measured on.
      protocol: The protocol that was followed, or None.

    Returns:
      The differences, in words.
    """
    reasons = []
    if published.protocol and protocol != published.protocol:
        reasons.append(f"published by the protocol {published.protocol}")
    for name, value in published.sampling.items():
        if sampling and name in sampling and sampling[name] != value:
            # Unset, DDIM's eta is 0: no noise is added.
            if name == "eta" and (sampling[name] or 0.0) == value:
                continue
            reasons.append(f"{name} {sampling[name]}, published with {value}")
    return tuple(reasons)


def comparison_reasons(
    published: Published,
    record: Mapping[str, Any],
    reference: Mapping[str, Any] | None,
    protocol: str | None,
) -> tuple[str, ...]:
    """Lists all differences of an evaluation of samples from a published number.

    Args:
      published: The published numbers.
      record: `ImageSet.record` of the samples.
      reference: `ReferenceStatistics.record` of their reference, or None.
      protocol: The protocol that was followed, or None.

    Returns:
      The differences, in words.
    """
    if not published.protocol:
        return ("published of the reconstructions of a first stage",)
    sampling, rules = record.get("sample"), PROTOCOLS[published.protocol]
    reasons = list(sampling_reasons(published, sampling or {}, protocol))
    if sampling is None:
        reasons.append("how the images were drawn, as their guidance, is not known")
    mode = (record.get("conditions") or {}).get("label_mode")
    if mode is not None and mode != rules.label_mode:
        reasons.append(f"classes {mode}, published with {rules.label_mode}")
    if reference is not None and not rules.is_reference(reference):
        reasons.append(
            f"the reference is {reference.get('name')}, published with "
            f"{rules.reference}"
        )
    return tuple(reasons)


def published_record(
    config: str, verdicts: list[Verdict], source: str
) -> dict[str, Any]:
    """Makes the record of verdicts for `metrics.json`.

    Args:
      config: Row of PUBLISHED.
      verdicts: Result of `compare_published`.
      source: Where the numbers were published.

    Returns:
      JSON-like dict.
    """
    values = {each.name: each._asdict() for each in verdicts}
    tolerance = {"tolerance": TOLERANCE}
    return {"config": config, "source": source, **tolerance, "values": values}


def record_of_results(results: Mapping[str, Result]) -> dict[str, Any]:
    """Makes the record of results for a JSON file.

    Args:
      results: Name -> result.

    Returns:
      JSON-like dict: "metrics", only the values, and "details", all fields of each
      result.
    """
    return {
        "metrics": {name: result.value for name, result in results.items()},
        "details": {name: result._asdict() for name, result in results.items()},
    }


def print_table(
    title: str, results: Mapping[str, Result], units: Mapping[str, str] | None = None
) -> None:
    """Prints results, one a line.

    Args:
      title: What was measured.
      results: Name -> result.
      units: Name -> unit of the value, for those with a unit.
    """
    print(title)
    for name, result in results.items():
        unit = f" {units[name]}" if units and name in units else ""
        spread = "" if result.deviation is None else f" ± {result.deviation:.4g}"
        bias = "" if result.bias is None else f", bias about {result.bias:+.2g}"
        known, note = _known_better(name), f"  ({result.note})" if result.note else ""
        arrow = f"  {known} is better" if known else ""
        number = f"{write_number(result.value):>12}{spread}{unit}"
        print(f"  {name:<36}{number}{bias}{arrow}{note}")


def write_number(value: float | None) -> str:
    """Formats a number of a table.

    Args:
      value: The number; None gives "-".

    Returns:
      Text with four decimals, or one for numbers of 1000 and more.
    """
    if value is None:
        return "-"
    if not math.isfinite(value):
        return str(value)
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.1f}"


def markdown(
    title: str,
    results: Mapping[str, Result],
    verdicts: list[Verdict],
    tolerance: float,
    source: str,
) -> str:
    """Formats results as a Markdown table, beside published numbers if there are any.

    Args:
      title: What was measured.
      results: Name -> result.
      verdicts: Result of `compare_published`; empty if nothing is published.
      tolerance: See `compare_published`.
      source: Where the numbers were published.

    Returns:
      Text of several lines.
    """
    published = {each.name: each for each in verdicts}
    head = [title, "measured", "deviation", "images"]
    if verdicts:
        head += ["published", f"within {tolerance:.0%} of {source}"]
    rows = [head, ["---"] * len(head)]
    for name in [*results, *(name for name in published if name not in results)]:
        result, verdict = results.get(name), published.get(name)
        cells = [name] + ["-"] * (len(head) - 1)
        if result is not None:
            spread = result.deviation
            cells[1:4] = [
                write_number(result.value),
                write_number(spread),
                f"{result.count:,}",
            ]
        if verdict is not None:
            why = f": {verdict.reason}" if verdict.reason else ""
            cells[4:] = [f"{verdict.published:g}", f"{verdict.verdict}{why}"]
        rows.append(cells)
    lines = [f"| {' | '.join(cells)} |" for cells in rows]
    return "\n".join(lines) + "\n"
