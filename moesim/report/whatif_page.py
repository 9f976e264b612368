"""Page of a what-if: the headline of every variant with its band, what its time is made of, every metric."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesim.report.plain_page import Section, write_plain_page
from moesim.report.style import (
    CATEGORIES,
    COLOURS,
    FAINT,
    PALETTE,
    Document,
    beside,
    colour_of,
    legend,
    new_figure,
    save_pngs,
    short,
    themed,
    time_axis,
    title,
)
from moesim.units import fmt_quantity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROW_IN = 0.36
HEAD_IN = 1.2
TOLD = (
    *("p50_ttft_s", "p50_tpot_s", "output_tokens_per_s_per_device", "cost_per_million_tokens_usd"),
    *("mfu_fraction", "exposed_communication_fraction", "bubble_fraction", "peak_bytes"),
    *("hit_fraction", "link_busy_fraction", "energy_per_token_j"),
)
"""Metrics that are drawn beside the headline where a run has them, the first few."""

MOST_TOLD = 4
AXIS_CHARACTERS = 24
NOTABLE_FRACTION = 5e-4
"""Smallest change that the table of metrics shows: half of its last digit."""


def variants(document: Document) -> list[Mapping[str, Any]]:
    """The baseline and all rows that ran, in order."""
    return [document["baseline"], *(row for row in document["rows"] if "metrics" in row)]


@themed
def headline(document: Document) -> Figure | None:
    """The headline of every variant with its 80 % band; a line through the baseline."""
    rows = variants(document)
    figure, axes = new_figure(HEAD_IN + ROW_IN * len(rows))
    _ranges(axes, rows, document["headline"])
    title(figure, document["answer"])
    return figure


@themed
def others(document: Document) -> Figure | None:
    """The same of a few other metrics, side by side."""
    rows = variants(document)
    names = [name for name in TOLD if name in rows[0]["metrics"] and name != document["headline"]]
    names = [name for name in names if all(name in row["metrics"] for row in rows)][:MOST_TOLD]
    if not names:
        return None
    figure, panels = new_figure(HEAD_IN + ROW_IN * len(rows), 1, len(names), squeeze=False, sharey=True)
    for axes, name in zip(panels[0], names, strict=True):
        _ranges(axes, rows, name, with_change=False)
    title(figure, "Beside it")
    return figure


def _ranges(axes: Axes, rows: Sequence[Mapping[str, Any]], name: str, *, with_change: bool = True) -> None:
    """Value and band of one metric of every variant, one below the other."""
    metrics = [row["metrics"][name] for row in rows]
    unit = metrics[0]["unit"]
    axes.axvline(metrics[0]["value"], color=FAINT, linewidth=1.2, linestyle="--", zorder=1)
    highest = max(metric.get("high", metric["value"]) for metric in metrics)
    for place, (row, metric) in enumerate(zip(rows, metrics, strict=True)):
        low, high = metric.get("low", metric["value"]), metric.get("high", metric["value"])
        colour = PALETTE[0] if place else FAINT
        axes.plot([low, high], [place, place], color=colour, linewidth=5, alpha=0.35, solid_capstyle="butt")
        axes.plot(metric["value"], place, "o", color=colour, markersize=6)
        change = f"  {100 * row['change_fraction']:+.1f} %" if place and with_change else ""
        beside(axes, high, place, fmt_quantity(metric["value"], unit) + change)
    axes.set_yticks(range(len(rows)), [short(row["label"]) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, highest * (1.25 if with_change else 1.6) or 1)
    if unit == "s":
        time_axis(axes.xaxis, highest, name)
    else:
        axes.xaxis.set_major_formatter(lambda value, _: fmt_quantity(value, unit))
        axes.set_xlabel(textwrap.fill(name.replace("_", " "), AXIS_CHARACTERS))
    if not with_change:
        axes.locator_params(axis="x", nbins=2)


@themed
def breakdown(document: Document) -> Figure | None:
    """Time on the critical path of every variant by kind of operation."""
    rows = [row for row in variants(document) if row["breakdown"]]
    if not rows:
        return None
    figure, axes = new_figure(HEAD_IN + ROW_IN * len(rows))
    kinds = {share["kind"] for row in rows for share in row["breakdown"]}
    order = [k for k in CATEGORIES if any(COLOURS[k] == colour_of(kind) for kind in kinds)]
    longest = 0.0
    for place, row in enumerate(rows):
        start = 0.0
        for category in order:
            shares = [s for s in row["breakdown"] if colour_of(s["kind"]) == COLOURS[category]]
            seconds = sum(share["seconds"] for share in shares)
            axes.barh(place, seconds, left=start, color=COLOURS[category], height=0.7)
            start += seconds
        longest = max(longest, start)
        largest = max(row["breakdown"], key=lambda share: float(share["seconds"]))
        beside(axes, start, place, f"{largest['name']} {largest['fraction']:.0%}")
    axes.set_yticks(range(len(rows)), [short(row["label"]) for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, longest * 1.3)
    time_axis(axes.xaxis, longest, "critical path; behind the bars: its largest part")
    legend(axes, kinds)
    title(figure, "What the time is made of")
    return figure


PICTURES = {"headline": headline, "others": others, "breakdown": breakdown}


def write_whatif_page(document: Document, path: Path) -> Path:
    """Page of a ``whatif`` document; the same document gives the same bytes."""
    failed = [row for row in document["rows"] if "error" in row]
    rows = variants(document)
    sections = [
        Section(text=document["answer"] + " Bars are 80 % bands.", figure=headline(document)),
        Section(figure=others(document)),
        Section(
            "Why", "What each variant's critical path holds, and what then limits it.", breakdown(document),
            ("variant", document["headline"], "against", "limiter"),
            [_row(document, row) for row in rows], (1, 2),
        ),
        Section(
            "Every metric that changes", "", None,
            ("metric", *(row["label"] for row in rows)), _metrics(rows), tuple(range(1, len(rows) + 1)),
        ),
    ]  # fmt: skip
    if failed:
        cells = [[row["label"], row["error"]] for row in failed]
        sections.append(Section("What does not run", "", None, ("variant", "why"), cells))
    return write_plain_page(path, document["title"], sections)


def write_whatif_figures(document: Document, folder: Path) -> list[Path]:
    """PNG file of every picture."""
    return save_pngs({name: draw(document) for name, draw in PICTURES.items()}, folder)


def _row(document: Document, row: Mapping[str, Any]) -> list[str]:
    metric = row["metrics"][document["headline"]]
    change = f"{100 * row['change_fraction']:+.1f} %" if "change_fraction" in row else ""
    return [row["label"], fmt_quantity(metric["value"], metric["unit"]), change, row["limiter"]]


def _metrics(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Metrics of all variants that are not the same everywhere, in the baseline's order."""
    first = rows[0]["metrics"]
    table = []
    for name, metric in first.items():
        given = [row["metrics"].get(name) for row in rows]
        values = [one["value"] for one in given if one is not None]
        if len(values) == len(rows) and max(values) - min(values) <= NOTABLE_FRACTION * abs(max(values)):
            continue
        shown = ["" if one is None else fmt_quantity(one["value"], metric["unit"]) for one in given]
        table.append([name, *shown])
    return table
