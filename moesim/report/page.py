"""One self-contained HTML page over any number of runs: no network access, nothing executed from data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from moesim.files import write_text
from moesim.report import captions
from moesim.report.figures import FIGURES
from moesim.report.style import svg_text
from moesim.units import fmt_quantity

GRADE_ORDER = ("assumed", "roofline", "fitted", "interpolated", "measured", "datasheet")
"""Sources are listed with the weakest evidence first."""

CAPTIONS = {
    "breakdown": "Critical path of the median routed batch: the operations that, in turn, take the step.",
    "sensitivity": "The same step with one property of the machine changed at a time.",
    "expert_load": "Mean tokens of each expert in a step, every layer sorted on its own.",
    "rank_load": "Expected tokens of each rank on traffic that no placement has seen.",
    "comparison": "How far the largest rank load is from what can be proven, and what that does to the step.",
    "traffic": "Dispatch and combine of one step from actual destinations, mean over routed batches.",
    "timeline": "Least busy, most busy and ranks between. The whole timeline is in timeline.json.gz.",
    "memory": "Memory ledger per rank; the line is the capacity of the device.",
}


def write_page(documents: Sequence[Mapping[str, Any]], path: Path, *, title: str) -> Path:
    """HTML page over ``documents`` at ``path``; the same documents give the same bytes."""
    return write_text(path, page_text(documents, title=title))


def page_text(documents: Sequence[Mapping[str, Any]], *, title: str) -> str:
    """The page as text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # noqa: PLC0415
    from markupsafe import Markup  # noqa: PLC0415

    environment = Environment(
        loader=PackageLoader("moesim.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["quantity"] = lambda metric: fmt_quantity(metric["value"], metric["unit"])
    environment.filters["band"] = _band
    environment.filters["scatter"] = _scatter
    environment.filters["percent"] = lambda value: f"{100 * value:.1f} %"
    environment.filters["plain_value"] = plain_value
    sections = [_section(number, document, Markup) for number, document in enumerate(documents, 1)]
    return environment.get_template("page.html.j2").render(title=title, sections=sections)


def _section(number: int, document: Mapping[str, Any], markup: Callable[[str], Any]) -> dict[str, Any]:
    figures = []
    for name, draw in FIGURES.items():
        figure = draw(document)
        if figure is not None:
            # drawn by matplotlib, which escapes every text it is given
            figures.append({"name": name, "svg": markup(svg_text(figure)), "caption": CAPTIONS[name]})
    sources = sorted(document.get("sources", ()), key=lambda row: GRADE_ORDER.index(row["grade"]))
    return {
        "id": f"run-{number}",
        "document": document,
        "headline": document["metrics"][document["headline"]],
        "figures": figures,
        "comparison": document["views"].get("comparison", ()),
        "sources": sources,
        "scenario": list(_lines(document["scenario"])),
        "sentence": captions.metric_text(document["metrics"][document["headline"]]),
    }


def _band(metric: Mapping[str, Any]) -> str:
    if "low" not in metric:
        return ""
    low, high = (fmt_quantity(metric[end], metric["unit"]) for end in ("low", "high"))
    return f"{low} to {high}"


def _scatter(metric: Mapping[str, Any]) -> str:
    if "scatter_low" not in metric:
        return ""
    low, high = (fmt_quantity(metric[f"scatter_{end}"], metric["unit"]) for end in ("low", "high"))
    return "" if low == high else f"{low} to {high}"


def plain_value(value: Any) -> str:
    """Number without noise, anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


def _lines(node: Any, depth: int = 0) -> list[tuple[int, str, str]]:
    """Tree as (indent, key, value) lines; sources are shown in their own table."""
    lines: list[tuple[int, str, str]] = []
    for key, value in node.items():
        if key == "sources":
            continue
        if isinstance(value, dict):
            lines += [(depth, str(key), ""), *_lines(value, depth + 1)]
        else:
            lines.append(
                (depth, str(key), ", ".join(map(str, value)) if isinstance(value, list) else str(value))
            )
    return lines
