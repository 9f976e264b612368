"""One self-contained HTML page over any number of runs: no network access, nothing executed from data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from moesim.files import write_text
from moesim.report.serving_figures import service_points
from moesim.report.serving_loads import service_loads
from moesim.report.style import svg_text
from moesim.units import fmt_quantity, unit_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Figures: TypeAlias = Mapping[str, "Figure"]

GRADE_ORDER = ("assumed", "roofline", "fitted", "interpolated", "measured", "datasheet")
"""Sources are listed with the weakest evidence first."""

CHAPTERS = {
    "Requests": ("latency_curves",),
    "Over time": ("service_over_time", "batches"),
    "Where the time goes": ("breakdown",),
    "What limits it": ("sensitivity",),
    "Pipeline": ("pipeline",),
    "Experts near and far": ("cache_curve", "lanes"),
    "Experts and ranks": ("expert_load", "rank_load", "comparison"),
    "Bytes between ranks": ("traffic", "links", "crowd"),
    "Timeline": ("timeline",),
    "Memory": ("memory",),
}
"""Headings of a run, and the figures under each."""

CAPTIONS = {
    "latency_curves": "Share of requests within each latency, queueing included; dots are the median and the "
    "99th percentile.",
    "service_over_time": "Sums over all instances in bins of equal width: tokens, requests, blocks in use.",
    "batches": "Mean number of requests in the batch of each instance.",
    "service_loads": "A line a service, a point a run: what is asked for, and requests that meet all "
    "objectives, with the 80 % band.",
    "service_points": "One point a run: what a device yields against what a user sees.",
    "breakdown": "Critical path of the median routed batch: the operations that, in turn, take the step.",
    "sensitivity": "The same run with one property changed at a time.",
    "pipeline": "One replica of the median sample; numbers are microbatches, halves of a box run together.",
    "cache_curve": "Every point a run with another cache and everything else equal.",
    "lanes": "In-order queues of the machine over the whole run, caches filling included.",
    "expert_load": "Mean tokens of each expert in a step, every layer sorted on its own.",
    "rank_load": "Expected tokens of each rank on traffic that no placement has seen.",
    "comparison": "How far the largest rank load is from what can be proven, and what that does to the step.",
    "traffic": "Dispatch and combine of one step from actual destinations, mean over routed batches.",
    "links": "Seconds that each link needs at its datasheet rate for those bytes, one strip a kind of link.",
    "crowd": "Share of the rate that each link reaches, over one step of the median routed batch: what "
    "the step itself moved, and what others moved on the same links.",
    "timeline": "Least busy, most busy and ranks between. The whole timeline is in timeline.json.gz "
    "(ui.perfetto.dev opens it).",
    "memory": "Memory ledger per rank; the line is the capacity of the device.",
}


OVERVIEWS = {"service_loads": service_loads, "service_points": service_points}
"""Figures over all runs of a page."""


def write_page(
    documents: Sequence[Mapping[str, Any]], figures: Sequence[Figures], path: Path, *, title: str
) -> Path:
    """HTML page over ``documents`` at ``path``; the same documents give the same bytes."""
    return write_text(path, page_text(documents, figures, title=title))


def page_text(documents: Sequence[Mapping[str, Any]], figures: Sequence[Figures], *, title: str) -> str:
    """The page as text; ``figures`` are of :func:`moesim.report.figures.drawn`, one mapping a document."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # noqa: PLC0415
    from markupsafe import Markup  # noqa: PLC0415

    environment = Environment(
        loader=PackageLoader("moesim.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["quantity"] = lambda metric: fmt_quantity(metric["value"], metric["unit"])
    environment.filters["band"] = lambda metric: _range(metric, "low", "high")
    environment.filters["scatter"] = lambda metric: _range(metric, "scatter_low", "scatter_high")
    environment.filters["place"] = place_in_band
    environment.filters["percent"] = lambda value: f"{100 * value:.1f} %"
    environment.filters["described"] = described
    titles = [document["title"] for document in documents]
    sections = [
        _section(number, document, drawn, titles, Markup)
        for number, (document, drawn) in enumerate(zip(documents, figures, strict=True), 1)
    ]
    overview = []
    for name, draw in OVERVIEWS.items():
        figure = draw(documents)
        if figure is not None:
            overview.append({"svg": Markup(svg_text(figure, name)), "caption": CAPTIONS[name]})
    return environment.get_template("page.html.j2").render(title=title, sections=sections, overview=overview)


def _section(
    number: int,
    document: Mapping[str, Any],
    drawn: Figures,
    titles: Sequence[str],
    markup: Callable[[str], Any],
) -> dict[str, Any]:
    name, heading = f"run-{number}", document["title"]
    if titles.count(heading) > 1:
        heading = f"{document['scenario']['name']}: {heading}"
    return {
        "id": name,
        "heading": heading,
        "document": document,
        "headline": document["metrics"][document["headline"]],
        "chapters": list(_chapters(name, drawn, markup)),
        "comparison": document["views"].get("comparison", ()),
        "sources": _by_grade(document.get("sources", ())),
        "num_sources": len(document.get("sources", ())),
        "scenario": list(_lines(document["scenario"])),
    }


def _chapters(name: str, drawn: Figures, markup: Callable[[str], Any]) -> Iterator[dict[str, Any]]:
    """Headings with their drawn figures; those without any are left out."""
    for heading, names in CHAPTERS.items():
        # drawn by matplotlib, which escapes every text it is given
        figures = [
            {"name": part, "svg": markup(svg_text(drawn[part], f"{name}-{part}")), "caption": CAPTIONS[part]}
            for part in names
            if part in drawn
        ]
        if figures:
            yield {"heading": heading, "figures": figures}


def _by_grade(sources: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Sources in groups of one grade, weakest first; neighbours with one source share its text."""
    rank = {grade: place for place, grade in enumerate(GRADE_ORDER)}
    # grades unknown here come before all
    ordered = sorted(sources, key=lambda row: (rank.get(row["grade"], -1), row["grade"]))
    groups = []
    for grade, found in groupby(ordered, key=lambda row: row["grade"]):
        rows = list(found)
        shared = [(source, list(same)) for source, same in groupby(rows, key=lambda row: row["source"])]
        groups.append({"grade": grade, "count": len(rows), "shared": shared})
    return groups


def _range(metric: Mapping[str, Any], low: str, high: str) -> str:
    """``'40.9 to 62.5 ms'``; empty without a range or if both ends look alike."""
    if low not in metric or high not in metric:
        return ""
    texts = [fmt_quantity(metric[end], metric["unit"]) for end in (low, high)]
    if texts[0] == texts[1]:
        return ""
    units = [text.partition(" ")[2] for text in texts]
    return f"{texts[0].partition(' ')[0] if units[0] == units[1] else texts[0]} to {texts[1]}"


def place_in_band(metric: Mapping[str, Any]) -> str:
    """Where the value lies between the ends of its band, in percent; empty without a band."""
    if "low" not in metric or "high" not in metric or metric["high"] <= metric["low"]:
        return ""
    place = (metric["value"] - metric["low"]) / (metric["high"] - metric["low"])
    return f"{100 * min(max(place, 0.0), 1.0):.1f}"


def described(row: Mapping[str, Any]) -> str:
    """Value of a source as people read it: with its unit, without noise."""
    value, unit = row["value"], row.get("unit") or unit_of(row["path"].rpartition(".")[2])
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else str(value)
    if unit:
        return fmt_quantity(value, unit)
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
