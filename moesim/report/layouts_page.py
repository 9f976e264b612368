"""Page of training layouts side by side: what each step is made of, its memory, and what imbalance costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesim.report.plain_page import Section, write_plain_page
from moesim.report.style import (
    FAINT,
    PALETTE,
    Document,
    byte_ticks,
    new_figure,
    save_pngs,
    themed,
    time_axis,
    title,
)
from moesim.units import fmt_bytes, fmt_quantity, fmt_seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = (
    "#0072B2",
    "#56B4E9",
    "#a8d5ee",
    "#F0E442",
    "#D55E00",
    "#E69F00",
    "#b3740b",
    "#CC79A7",
    "#BBBBBB",
    "#222222",
)
"""Of the groups of a step in their order."""

MEMORY = {
    "weights": PALETTE[0],
    "gradients": PALETTE[1],
    "optimizer": PALETTE[2],
    "activations": PALETTE[3],
    "expert activations": PALETTE[5],
    "gathered weights": PALETTE[7],
}
"""Colours of the large parts; the rest is drawn as one."""

COLUMNS = ("layout", "recompute", "even experts", "natural", "cost", "tok/s each", "bubble", "why it is here")
BAR_IN = 0.42
KEY_COLUMNS = 4
READABLE_FRACTION = 0.05
"""Shares of the longest bar from which on a part carries its number."""


def label(row: Mapping[str, Any]) -> str:
    """Degrees of a layout in two lines."""
    names = {"TP": row["tp"], "CP": row["cp"], "PP": row["pp"], "VPP": row["vpp"], "EP": row["ep"]}
    always = {"TP", "PP", "EP"}
    degrees = " ".join(f"{n}{v}" for n, v in (names | {"ETP": row["etp"]}).items() if v > 1 or n in always)
    return f"{degrees}\n{row['micro_batch']} seq. · {row['schedule']}"


@themed
def steps(document: Document) -> Figure | None:
    """Seconds of a step by group for every layout, fastest on top; what uneven experts add at the end."""
    view = document["layouts"]
    rows, groups = view["rows"], view["groups"]
    parts = {name: [row["groups"][name] for row in rows] for name in groups}
    figure, axes = new_figure(2.0 + BAR_IN * len(rows))
    colours = dict(zip(groups, COLOURS, strict=True))
    longest = _stacked(axes, rows, {n: p for n, p in parts.items() if max(p) > 0}, colours, told=True)
    for place, row in enumerate(rows):
        text = f"{fmt_seconds(row['step_s'])} · MFU {fmt_quantity(row['mfu_fraction'], 'fraction')}"
        _at_end(axes, row["step_s"], place, text)
    axes.set_xlim(0, longest * 1.24)
    time_axis(axes.xaxis, longest, "time of a step, busiest stage")
    title(figure, _message(rows))
    return figure


@themed
def memory(document: Document) -> Figure | None:
    """Bytes of the fullest rank of every layout against what a device has."""
    view = document["layouts"]
    rows, capacity = view["rows"], view["capacity_bytes"]
    names = [name for name in MEMORY if any(row["memory"].get(name) for row in rows)]
    parts = {name: [row["memory"].get(name, 0.0) for row in rows] for name in names}
    parts["all else"] = [sum(v for n, v in row["memory"].items() if n not in names) for row in rows]
    figure, axes = new_figure(2.0 + BAR_IN * len(rows))
    longest = _stacked(axes, rows, parts, MEMORY | {"all else": "#BBBBBB"}, told=False)
    for place, row in enumerate(rows):
        text = f"{fmt_bytes(row['peak_bytes'])} · {row['recompute']}"
        _at_end(axes, max(row["peak_bytes"], capacity), place, text)
    axes.axvline(capacity, color=FAINT, linewidth=1.2, linestyle="--", zorder=3)
    axes.set_xlim(0, max(longest, capacity) * 1.32)
    byte_ticks(axes.xaxis, max(longest, capacity))
    axes.set_xlabel(
        "fullest rank of the fullest stage; dashed: a device's memory; behind the bars: what is run again"
    )
    least = min(rows, key=lambda row: float(row["peak_bytes"]))
    text = f"Memory: {fmt_bytes(least['peak_bytes'])} to {fmt_bytes(max(r['peak_bytes'] for r in rows))}"
    title(figure, f"{text} of {fmt_bytes(capacity)}")
    return figure


PICTURES = {"layouts": steps, "layout_memory": memory}


def write_layouts_page(document: Document, path: Path) -> Path:
    """Page of a ``train search`` document with layouts; the same document gives the same bytes."""
    rows, counts = document["layouts"]["rows"], document["counts"]
    sections = [
        Section(text=document["answer"]),
        Section(
            "Which layout",
            "Bars are steps under even experts, made of what the busiest stage's critical path holds; the "
            "last part is what natural routing adds. Communication counts where nothing runs beside it.",
            steps(document),
        ),
        Section(
            "What imbalance costs",
            "The same plans with every expert alike, and with the scenario's routing.",
            columns=COLUMNS,
            rows=[_cells(row) for row in rows],
            right=(2, 3, 4, 5, 6),
        ),
        Section("Memory", "", memory(document)),
        Section(
            "Why others are out",
            f"{counts['plans']:,} combinations, {counts['sized']:,} of them plans whose memory was counted, "
            f"{counts['timed']:,} timed.",
            columns=("plans", "why"),
            rows=[[f"{count:,}", why] for why, count in document["left_out"].items()],
            right=(0,),
        ),
        Section("Run the fastest", " ".join(["moesim run", document["scenario"], *_sets(rows[0])])),
    ]
    return write_plain_page(path, document["title"], sections)


def write_layouts_figures(document: Document, folder: Path) -> list[Path]:
    """PNG file of every picture."""
    return save_pngs({name: draw(document) for name, draw in PICTURES.items()}, folder)


def _sets(row: Mapping[str, Any]) -> list[str]:
    return [f"--set {one}" for one in row["set"]]


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [
        label(row).replace("\n", ", "),
        row["recompute"],
        fmt_seconds(row["balanced_step_s"]),
        fmt_seconds(row["step_s"]),
        f"{100 * row['imbalance_cost_fraction']:+.1f} %",
        f"{row['tokens_per_s_per_device']:,.0f}",
        fmt_quantity(row["bubble_fraction"], "fraction"),
        row["note"],
    ]


def _message(rows: Sequence[Mapping[str, Any]]) -> str:
    best, worst = rows[0], rows[-1]
    costs = [100 * row["imbalance_cost_fraction"] for row in rows]
    more = 100 * (worst["step_s"] / best["step_s"] - 1)
    name = label(best).splitlines()[0]
    return (
        f"{name} is fastest, others take up to {more:.0f} % longer; "
        f"uneven experts cost {min(costs):.0f} to {max(costs):.0f} %"
    )


def _stacked(
    axes: Axes,
    rows: Sequence[Mapping[str, Any]],
    parts: Mapping[str, Sequence[float]],
    colours: Mapping[str, str],
    *,
    told: bool,
) -> float:
    """Horizontal stacks with a key above; returns the longest."""
    starts = [0.0] * len(rows)
    longest = max(sum(values[place] for values in parts.values()) for place in range(len(rows)))
    for name, values in parts.items():
        axes.barh(range(len(rows)), values, left=starts, color=colours[name], height=0.72, label=name)
        for place, (start, value) in enumerate(zip(starts, values, strict=True)):
            if told and value > READABLE_FRACTION * longest:
                share = f"{100 * value / sum(of[place] for of in parts.values()):.0f} %"
                _inside(axes, start + value / 2, place, share, colours[name])
        starts = [start + value for start, value in zip(starts, values, strict=True)]
    axes.set_yticks(range(len(rows)), [label(row) for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.legend(
        ncols=KEY_COLUMNS,
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.0),
        handlelength=1.0,
        handleheight=1.0,
        columnspacing=1.2,
    )
    return longest


def _inside(axes: Axes, middle: float, place: float, text: str, colour: str) -> None:
    ink = "white" if _is_dark(colour) else "#222222"
    axes.text(middle, place, text, ha="center", va="center", fontsize=7.5, color=ink)


def _is_dark(colour: str) -> bool:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return 0.3 * red + 0.59 * green + 0.11 * blue < 140


def _at_end(axes: Axes, end: float, place: float, text: str) -> None:
    axes.annotate(text, (end, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8.5)
