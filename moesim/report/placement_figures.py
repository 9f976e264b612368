"""Pictures of placements: what ranks carry, what crosses between them, what moves, how methods compare."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from moesim.report.expert_figures import rank_load
from moesim.report.style import (
    COLOURS,
    FAINT,
    HEAT,
    PALETTE,
    WORSE,
    Document,
    Draw,
    beside,
    new_figure,
    short,
    themed,
    title,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLIND = ("linear", "round_robin", "random")
"""Methods that do not look at traffic: far off, and no trade."""
MARKS = ("o", "s", "^")
ROW_IN = 0.27
"""Height of a method's row."""


def rank_loads(document: Document) -> Figure | None:
    """Unseen tokens of each rank and layer, before and after."""
    loads = document["views"]["rank_loads"]
    variants = [
        {"label": f"before: {document['problem']['before']}", "tokens": loads["before"]},
        {"label": f"after: {document['method']}", "tokens": loads["after"]},
    ]
    return rank_load({"views": {"rank_load": {"layers": document["views"]["layers"], "variants": variants}}})


@themed
def against_bound(document: Document) -> Figure | None:
    """Largest rank load of every method over what no placement undercuts."""
    bound = document["metrics"]["lower_bound"]["value"]
    rows = _rows(document)
    if bound <= 0:
        return None
    figure, axes = new_figure(1.2 + ROW_IN * len(rows))
    over = [1 + row["gap_fraction"] for row in rows]
    colours = [PALETTE[5] if row["method"] == "before" else COLOURS["compute"] for row in rows]
    axes.barh(range(len(rows)), [value - 1 for value in over], left=1, color=colours, height=0.65)
    axes.axvline(1, color=WORSE, linewidth=1.4)
    for place, value in enumerate(over):
        beside(axes, value, place, f"{100 * (value - 1):.2f} %")
    _named(axes, rows)
    axes.set_xlim(1 - 0.02 * (max(over) - 1), 1 + 1.12 * max(max(over) - 1, 0.01))
    axes.set_xlabel("largest rank load of the fit part over the proven bound (line)")
    best = document["metrics"]["gap_fraction"]["value"]
    title(figure, f"{document['method']} is at most {100 * best:.2f} % above the best possible")
    return figure


@themed
def unseen(document: Document) -> Figure | None:
    """Imbalance on the fit part, unseen requests, single batches and other domains."""
    rows = _rows(document)
    parts = [("fit", "fit part"), ("held_out", "unseen requests"), ("batch", "single batches")]
    domains = list(document["before"]["imbalance_ratio_domains"])
    series = [(label, [_value(row, part) for row in rows]) for part, label in parts]
    series += [(short(name), [_domain(row, name) for row in rows]) for name in domains]
    figure, axes = new_figure(1.6 + (0.1 + 0.085 * len(series)) * len(rows))
    step = 0.8 / len(series)
    for number, (label, values) in enumerate(series):
        places = np.arange(len(rows)) - 0.4 + (number + 0.5) * step
        colour = PALETTE[(6, 0, 1, 5, 3, 4, 2)[number % 7]]
        axes.barh(
            places, [value - 1 for value, _ in values], left=1, height=step * 0.9, color=colour, label=label
        )
        for place, (_, ends) in zip(places, values, strict=True):
            if ends is not None:
                axes.plot(ends, [place, place], color="#222222", linewidth=1)
    _named(axes, rows)
    axes.set_xlim(1, None)
    axes.set_xlabel("largest over mean rank load, mean over layers; lines: 80 % of resamples")
    axes.grid(axis="x", color=FAINT, alpha=0.3, linewidth=0.6)
    figure.legend(loc="outside lower center", ncols=min(len(series), 5), fontsize=8.5)
    title(figure, "What is balanced on the traffic it was made for, and what stays of it elsewhere")
    return figure


@themed
def trade(document: Document) -> Figure | None:
    """Balance of single batches against what leaves a rank, one mark a method that looks at traffic."""
    rows = [row for row in document["methods"] if row["method"] not in BLIND]
    if len(rows) < 3:  # noqa: PLR2004 - with a method or two there is nothing to trade
        return None
    figure, axes = new_figure(4.0, 1, 2, sharey=True)
    panels = (
        (axes[0], "ranks_per_token", 1, "ranks that serve a token in a layer"),
        (axes[1], "same_rank_share", 100, "next-layer pairs on one rank (%)"),
    )
    for panel, name, scale, label in panels:
        for number, row in enumerate(rows):
            panel.plot(
                scale * row[name],
                row["imbalance_ratio_batch"],
                MARKS[number // len(PALETTE) % len(MARKS)],
                color=PALETTE[number % len(PALETTE)],
                label=row["method"] if panel is axes[0] else None,
                markersize=8,
                markeredgecolor="#222222",
                markeredgewidth=0.5,
            )
        panel.set_xlabel(label)
        panel.grid(color=FAINT, alpha=0.3, linewidth=0.6)
        panel.margins(0.12)
    axes[0].set_ylabel("largest over mean rank load of a batch")
    figure.legend(loc="outside lower center", ncols=6, fontsize=8.5)
    title(figure, "Affinity against balance, on unseen tokens")
    return figure


@themed
def pairs(document: Document) -> Figure | None:
    """Tokens between ranks, before and after."""
    view = document["views"]["pairs"]
    matrices = [np.asarray(view[when], float) for when in ("before", "after")]
    high = max(matrix.max() for matrix in matrices)
    if high <= 0:
        return None
    figure, axes = new_figure(3.9, 1, 2, sharey=True)
    names = (f"before: {document['problem']['before']}", f"after: {document['method']}")
    image: Any = None
    for panel, matrix, name in zip(axes, matrices, names, strict=True):
        shown = np.where(matrix > 0, matrix, np.nan)
        image = panel.imshow(shown, cmap=HEAT, interpolation="nearest", vmin=0, vmax=high)
        panel.set_title(f"{short(name)}: {matrix.sum():,.0f} sends", fontsize=10, loc="left")
        panel.set_xlabel("to rank")
        panel.spines[:].set_visible(False)
        panel.locator_params(nbins=8, integer=True)
    axes[0].set_ylabel("from rank")
    bar = figure.colorbar(image, ax=list(axes), shrink=0.85, pad=0.02, label="tokens sent once a rank")
    bar.outline.set_visible(False)
    change = matrices[1].sum() / max(matrices[0].sum(), 1.0) - 1
    title(figure, f"Sends between ranks, all layers, sampled unseen tokens: {100 * change:+.1f} %")
    return figure


@themed
def moved(document: Document) -> Figure | None:
    """Experts that each rank loads in each layer to get from before to after."""
    counts = np.asarray(document["views"]["moved"])
    if not counts.any():
        return None
    from matplotlib.colors import BoundaryNorm  # noqa: PLC0415

    figure, axes = new_figure(min(4.4, 1.8 + 0.06 * len(counts)))
    levels = int(counts.max()) + 1
    norm = BoundaryNorm(np.arange(levels + 1) - 0.5, 256)
    image = axes.imshow(counts, aspect="auto", cmap="Blues", interpolation="nearest", norm=norm)
    layers = document["views"]["layers"]
    places = range(0, len(layers), max(1, len(layers) // 8))
    axes.set_yticks(list(places), [str(layers[place]) for place in places])
    axes.set_ylabel("layer")
    axes.set_xlabel("rank")
    axes.spines[:].set_visible(False)
    axes.locator_params(axis="x", nbins=12, integer=True)
    ticks = range(0, levels, max(1, levels // 8))
    bar = figure.colorbar(image, ax=axes, pad=0.015, ticks=list(ticks), label="experts to load")
    bar.outline.set_visible(False)
    title(figure, f"{counts.sum():,} experts are loaded to get from before to {document['method']}")
    return figure


PICTURES: dict[str, tuple[Draw, str]] = {
    "rank_loads": (rank_loads, "Tokens of unseen requests that each rank serves, layers down."),
    "against_bound": (against_bound, "The bound holds for any placement with these slots."),
    "unseen": (unseen, "Every method saw the fit part only."),
    "trade": (trade, "Up is worse; experts that fire together load their rank together."),
    "pairs": (pairs, "A token is counted once for each other rank that serves it in a layer."),
    "moved": (moved, "Ranks are numbered so that few experts move where the method allows."),
}
"""Pictures of the page in their order, and their captions."""


def _rows(document: Document) -> list[dict[str, Any]]:
    """``before`` and every method, smallest largest rank load first."""
    before = {"method": "before", **document["before"]}
    return [before, *sorted(document["methods"], key=lambda row: float(row["objective"]))]


def _named(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    axes.set_yticks(range(len(rows)), [row["method"] for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)


def _value(row: dict[str, Any], part: str) -> tuple[float, Any]:
    return float(row[f"imbalance_ratio_{part}"]), row.get(f"imbalance_ratio_{part}_interval")


def _domain(row: dict[str, Any], name: str) -> tuple[float, Any]:
    return float(row["imbalance_ratio_domains"][name]), None
