"""Page of training steps while expert loads drift: seconds of every step under each answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moesim.report.plain_page import Section, write_plain_page
from moesim.report.style import FAINT, PALETTE, Document, new_figure, save_png, themed, time_axis, title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = ("answer", "mean step", "worst step", "imbalance", "experts moved", "moving, all steps")
EXPLAINED = (
    "Loads of experts follow an autoregression that keeps their skew: hot experts move to other places. "
    "A placement method finds new homes from the loads of the step before, and weights and optimizer states "
    "move before the step; with llep helpers get weights in every layer and return gradients."
)


@themed
def steps(document: Document) -> Figure | None:
    """Seconds of every step, a line an answer; dashed where every expert is alike."""
    figure, axes = new_figure(3.6)
    rows = document["rows"]
    ends = []
    for number, row in enumerate(rows):
        even = number == len(rows) - 1
        seconds = [step["step_s"] for step in row["steps"]]
        places = range(1, len(seconds) + 1)
        style = {"color": FAINT, "linestyle": "--"} if even else {"color": PALETTE[number % len(PALETTE)]}
        axes.plot(places, seconds, linewidth=1.6, marker="" if even else "o", markersize=3.5, **style)
        ends.append((seconds[-1], row["answer"], style["color"]))
    longest = max(step["step_s"] for row in rows for step in row["steps"])
    for end, (_, name, colour) in zip(_apart(ends, 0.06 * longest), ends, strict=True):
        at = (len(rows[0]["steps"]), end)
        axes.annotate(name, at, xytext=(8, 0), textcoords="offset points", va="center", color=colour)
    axes.set_ylim(0, longest * 1.12)
    axes.set_xlim(0.7, len(rows[0]["steps"]) * 1.22)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("step")
    time_axis(axes.yaxis, longest, "time of a step")
    title(figure, document["answer"])
    return figure


def _apart(ends: Sequence[tuple[float, str, str]], least: float) -> list[float]:
    """Heights of the labels, none nearer than ``least`` to another."""
    order = sorted(range(len(ends)), key=lambda i: ends[i][0])
    found = [end[0] for end in ends]
    for below, above in zip(order, order[1:], strict=False):
        found[above] = max(found[above], found[below] + least)
    return found


def write_drift_page(document: Document, path: Path, rows: Sequence[Sequence[str]]) -> Path:
    """Page of a ``train drift`` document and the rows of its table."""
    drift = document["drift"]
    what = (
        f"{drift['steps']} steps; {100 * drift['fraction']:.0f} % of the log load of every expert is renewed "
        f"from one to the next; placed anew every {drift['every']} steps."
    )
    sections = [
        Section(text=f"{document['answer']} {what}"),
        Section("Step by step", EXPLAINED, steps(document)),
        Section("Answers", columns=COLUMNS, rows=rows, right=range(1, 6)),
    ]
    return write_plain_page(path, document["title"], sections)


def write_drift_figure(document: Document, path: Path) -> Path:
    """The picture as a PNG file."""
    figure = steps(document)
    assert figure is not None  # every document has steps
    return save_png(figure, path)
