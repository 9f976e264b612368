"""Page of published claims beside ours: how far each is off in units of its tolerance, source by source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moesim.report.plain_page import Section, write_plain_page
from moesim.report.style import (
    BETTER,
    FAINT,
    WORSE,
    Document,
    new_figure,
    save_png,
    short,
    themed,
    title,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = ("claim", "published", "ours", "unit", "error", "tolerance", "source", "note")
RIGHT = (1, 2, 4, 5)
EXPLAINED = (
    "A dot a claim. Left of the middle ours is lower than published, right of it higher; within the dashed "
    "lines the distance is at most the tolerance set for that claim. Beyond them the axis is logarithmic."
)
FAR = 20.0
"""Multiples of the tolerance where the axis ends; what is farther lies on its edge."""
TICKS = (-FAR, -5, -2, -1, 0, 1, 2, 5, FAR)
LINE_IN, AROUND_IN = 0.23, 1.1
SPREAD = 0.28
"""How far dots of one line lie apart, in lines."""


def source_name(source: str) -> str:
    """First words of a source: what stands before the first bracket or comma."""
    return short(source.partition(" (")[0].partition(",")[0])


def by_source(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Rows under the name of their source, in the order of the set."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(source_name(row["source"]), []).append(row)
    return found


def distances(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Signed error of each row in units of its tolerance, at most ``FAR``, where unknown ones lie too."""
    errors = np.array([np.nan if row["error"] is None else row["error"] for row in rows], np.float64)
    tolerances = np.array([row["tolerance"] for row in rows], np.float64)
    exact = np.where(errors == 0, 0.0, np.sign(errors) * FAR)
    scaled = np.divide(errors, tolerances, out=exact, where=tolerances > 0)
    clipped: np.ndarray = np.clip(np.nan_to_num(scaled, nan=FAR), -FAR, FAR)
    return clipped


@themed
def strips(document: Document) -> Figure | None:
    """A line a source, a dot a claim."""
    sources = by_source(document["rows"])
    figure, axes = new_figure(AROUND_IN + LINE_IN * len(sources))
    for place, rows in enumerate(sources.values()):
        away = distances(rows)
        within = np.array([row["within"] for row in rows], np.bool_)
        heights = place + SPREAD * np.linspace(-1, 1, len(rows) + 2)[1:-1]
        for mask, colour in ((within, BETTER), (~within, WORSE)):
            axes.scatter(away[mask], heights[mask], s=11, color=colour, linewidths=0, clip_on=False)
        count = f"{within.sum()} of {len(rows)}"
        axes.text(1.02, place, count, transform=axes.get_yaxis_transform(), va="center", color=FAINT)
    axes.set_xscale("symlog", linthresh=1.0, linscale=1.0)
    axes.set_xlim(-FAR, FAR)
    axes.set_xticks(TICKS, [f"{abs(tick):g}" for tick in TICKS])
    axes.xaxis.set_minor_locator(_no_ticks())
    for line in (-1, 1):
        axes.axvline(line, color=FAINT, linestyle="--", linewidth=0.8, zorder=0)
    axes.set_yticks(range(len(sources)), list(sources))
    axes.set_ylim(len(sources) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("ours is lower  <  distance in units of the tolerance  >  ours is higher")
    title(figure, headline(document))
    return figure


def _no_ticks() -> Any:
    from matplotlib.ticker import NullLocator  # noqa: PLC0415

    return NullLocator()


def headline(document: Document) -> str:
    """How many claims are met, and how far a usual one is off."""
    counts = document["summary"]
    text = f"{counts['n_within']} of {counts['n']} published figures are met"
    if counts["median_ape"] is not None:
        text += f"; half are within {100 * counts['median_ape']:.1f} %"
    return text


def write_claims_page(document: Document, path: Path, cells: Sequence[Sequence[str]]) -> Path:
    """Page of a ``validate SET`` document; ``cells`` has the texts of :data:`COLUMNS` for every row."""
    pairs = list(zip(document["rows"], cells, strict=True))
    missed = [texts for row, texts in pairs if not row["within"]]
    met = [texts for row, texts in pairs if row["within"]]
    what = f"{headline(document)}. Tolerances were set beforehand; nothing is left out for being missed."
    sections = [Section(text=what), Section("Source by source", EXPLAINED, strips(document))]
    sections += [
        Section(heading, columns=COLUMNS, rows=rows, right=RIGHT)
        for heading, rows in (("Missed", missed), ("Met", met))
        if rows
    ]
    return write_plain_page(path, f"Published figures beside ours: {document['set']}", sections)


def write_claims_figure(document: Document, path: Path) -> Path:
    """The picture as a PNG file."""
    figure = strips(document)
    assert figure is not None  # every set has claims
    return save_png(figure, path)
