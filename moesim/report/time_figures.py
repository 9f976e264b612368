"""Figures about time and memory: breakdown, sensitivity, timeline excerpt, memory ledger."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moesim.report import captions
from moesim.report.style import (
    BETTER,
    COLOURS,
    FAINT,
    INK,
    PAPER,
    PARTS,
    RESERVED,
    WORSE,
    Document,
    beside,
    byte_ticks,
    colour_of,
    legend,
    new_figure,
    short,
    themed,
    time_axis,
    title,
)
from moesim.units import fmt_bytes, fmt_seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SMALL_SHARE = 0.004
"""Operations below this share of the time are drawn as one bar."""
TOLD_SHARE = 0.001
"""Smaller shares are told as less than this."""
SMALL_CHANGE_PERCENT = 0.05
"""Changes below are told as 0 %."""
NOBODYS = {"reserve", "context and fragmentation"}
"""Parts of memory that the model does not get."""
CHARACTER_IN = 0.068
"""Width of a character of the texts inside bars; a text that would be wider than its bar is left out."""


@themed
def breakdown(document: Document) -> Figure | None:
    """Seconds by operation along the critical path, longest on top, with the grade of their evidence."""
    rows = _joined(document["breakdown"])
    if not rows:
        return None
    figure, axes = new_figure(1.35 + 0.29 * len(rows))
    places = range(len(rows))
    axes.barh(
        places, [row["seconds"] for row in rows], color=[colour_of(row["kind"]) for row in rows], height=0.7
    )
    for place, row in enumerate(rows):
        share = f"{100 * row['fraction']:.1f}" if row["fraction"] >= TOLD_SHARE else f"< {100 * TOLD_SHARE:g}"
        beside(axes, row["seconds"], place, f"{fmt_seconds(row['seconds'])} · {share} %")
        axes.text(
            1.0,
            place,
            row["evidence"],
            va="center",
            ha="right",
            fontsize=8.5,
            color=FAINT,
            transform=axes.get_yaxis_transform(),
        )
    _categories(axes, [row["name"] for row in rows])
    longest = max(row["seconds"] for row in rows)
    axes.set_xlim(0, longest * 1.34)
    time_axis(axes.xaxis, longest, "time on the critical path")
    legend(axes, {row["kind"] for row in rows})
    title(figure, captions.breakdown(document))
    return figure


def _joined(rows: Iterable[Any]) -> list[Any]:
    """Rows with the many small ones made one."""
    large: list[Any] = []
    small: list[Any] = []
    for row in rows:
        (large if row["fraction"] >= SMALL_SHARE else small).append(row)
    if len(small) > 1:
        total = {key: sum(row[key] for row in small) for key in ("seconds", "fraction")}
        return [*large, {"name": f"{len(small)} smaller ones", "kind": "several", "evidence": "", **total}]
    return [row for row in (*large, *small) if row["seconds"] > 0]


@themed
def sensitivity(document: Document) -> Figure | None:
    """Effect of each knob on the headline metric, and the value it would lead to."""
    rows = document.get("sensitivity") or []
    if not rows:
        return None
    figure, axes = new_figure(1.2 + 0.3 * len(rows))
    changes = np.array([100 * row["change_fraction"] for row in rows])
    axes.barh(range(len(rows)), changes, color=[BETTER if c < 0 else WORSE for c in changes], height=0.66)
    for place, (row, change) in enumerate(zip(rows, changes, strict=True)):
        told = "0 %" if abs(change) < SMALL_CHANGE_PERCENT else f"{change:+.1f} %"
        beside(axes, change, place, told, left=change <= 0)
        axes.text(
            1.0,
            place,
            fmt_seconds(row["value"]),
            va="center",
            ha="right",
            fontsize=8.5,
            color=FAINT,
            transform=axes.get_yaxis_transform(),
        )
    _categories(axes, [row["label"] for row in rows])
    span = max(float(np.ptp([*changes, 0.0])), 1.0)
    axes.set_xlim(min(changes.min(), 0) - 0.14 * span, max(changes.max(), 0) + 0.3 * span)
    axes.set_xticks([tick for tick in axes.get_xticks() if min(*changes, 0) <= tick <= max(*changes, 0)])
    axes.axvline(0, color=FAINT, linewidth=0.9)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(
        f"change of {rows[0].get('metric', document['headline'])} (%); at the right, the value it leads to"
    )
    title(figure, captions.sensitivity(document))
    return figure


@themed
def timeline(document: Document) -> Figure | None:
    """Excerpt of the timeline: the streams of some ranks, grey where a stream waits."""
    view = document["views"].get("timeline")
    if not view or not view["rows"] or view["end_s"] <= view["start_s"]:
        return None
    rows, total_s = view["rows"], view["end_s"] - view["start_s"]
    places, labels = _tracks(rows)
    figure, axes = new_figure(1.25 + 0.25 * (places[-1] + 1))
    axes.barh(places, total_s, height=0.8, color=COLOURS["idle"], alpha=0.28, linewidth=0)
    for place, row in zip(places, rows, strict=True):
        _track(axes, place, row["spans"], view["start_s"], total_s)
    axes.set_yticks(places, labels, fontsize=8.5)
    axes.set_ylim(places[-1] + 0.6, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlim(0, total_s)
    time_axis(axes.xaxis, total_s, "time since the start of the excerpt")
    legend(axes, {"idle", *(span[1] for row in rows for span in row["spans"])})
    title(figure, captions.timeline(document))
    return figure


def _tracks(rows: Sequence[Any]) -> tuple[list[float], list[str]]:
    """Place and label of each track; the tracks of a rank stand together under its name."""
    places, labels, at = [], [], 0.0
    for number, row in enumerate(rows):
        first = number == 0 or rows[number - 1]["rank"] != row["rank"]
        at += 0.0 if number == 0 else 1.5 if first else 1.0
        places.append(at)
        labels.append(f"rank {row['rank']}   {short(row['stream'])}" if first else short(row["stream"]))
    return places, labels


def _track(axes: Axes, place: float, spans: Sequence[Any], start_s: float, total_s: float) -> None:
    """Operations of one track, named where there is room."""
    begins = [begin - start_s for _, _, _, begin, _ in spans]
    widths = [end - begin for _, _, _, begin, end in spans]
    colours = [colour_of(span[1]) for span in spans]
    axes.barh(
        [place] * len(spans), widths, left=begins, height=0.8, color=colours, edgecolor=PAPER, linewidth=0.5
    )
    per_second_in = 7.2 / total_s
    for (name, *_), begin, width in zip(spans, begins, widths, strict=True):
        if len(name) * CHARACTER_IN + 0.06 <= width * per_second_in:
            axes.text(
                begin + width / 2, place, name, ha="center", va="center_baseline", fontsize=7.5, color="white"
            )


@themed
def memory(document: Document) -> Figure | None:
    """What fills the memory of each kind of rank, and what stays free."""
    view = document.get("memory")
    if not view or not view["per_rank"]:
        return None
    rows, capacity = view["per_rank"], view["capacity_bytes"]
    figure, axes = new_figure(1.75 + 0.5 * len(rows))
    names = dict.fromkeys(name for row in rows for name in row["parts"])
    left: NDArray[np.float64] = np.zeros(len(rows))
    colours = cycle(PARTS)
    for name in names:
        colour = RESERVED if name in NOBODYS else next(colours)
        sizes = np.array([row["parts"].get(name, 0.0) for row in rows])
        if sizes.max() > 0.002 * capacity:
            _stack(axes, left, sizes, capacity, colour, name)
        left = left + sizes
    free = np.array([row["free_bytes"] for row in rows])
    _stack(axes, left, np.maximum(free, 0), capacity, COLOURS["idle"], "free")
    axes.axvline(capacity, color=WORSE, linewidth=1.4)
    _categories(axes, [f"rank{'s' * ('-' in row['ranks'])} {row['ranks']}" for row in rows])
    high = max(capacity, float((left).max()))
    axes.set_xlim(0, high * 1.01)
    byte_ticks(axes.xaxis, high)
    figure.legend(loc="outside lower left", ncols=4, handlelength=1.1, handleheight=1.1, fontsize=8.5)
    title(figure, captions.memory(document))
    return figure


def _stack(
    axes: Axes, left: NDArray[np.float64], sizes: NDArray[np.float64], capacity: float, colour: str, name: str
) -> None:
    """One part of every bar, its size inside where there is room."""
    alpha = 0.35 if name == "free" else 1.0
    axes.barh(range(len(sizes)), sizes, left=left, color=colour, height=0.62, label=short(name), alpha=alpha)
    ink = INK if name == "free" else "white"
    for place, (begin, size) in enumerate(zip(left, sizes, strict=True)):
        text = fmt_bytes(size)
        if len(text) * CHARACTER_IN + 0.06 <= 7.4 * size / capacity:
            axes.text(begin + size / 2, place, text, ha="center", va="center", fontsize=8, color=ink)


def _categories(axes: Axes, names: Sequence[str]) -> None:
    """Names of bars beside them, the first on top."""
    axes.set_yticks(range(len(names)), [short(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
