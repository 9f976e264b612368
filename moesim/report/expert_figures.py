"""Figures about experts: their load, the load of ranks, placements side by side, bytes between ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moesim.report import captions
from moesim.report.style import (
    COLOURS,
    FAINT,
    HEAT,
    PALETTE,
    WORSE,
    Document,
    beside,
    byte_ticks,
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

LINES = tuple(PALETTE[place] for place in (5, 0, 2, 3, 4, 1))
"""Colour of each placement, the first one's a warm one."""
LOG_SPREAD = 100.0
"""Bytes of pairs that differ by more than this factor are drawn on a logarithmic scale."""


@themed
def expert_load(document: Document) -> Figure | None:
    """Tokens of each expert over the mean of its layer, layers down, every layer sorted on its own."""
    view = document["views"].get("expert_load")
    if view is None:
        return None
    ratio = captions.over_mean(view["tokens"])
    figure, axes = new_figure(min(4.6, 1.9 + 0.06 * len(ratio)))
    # sorted: how skewed each layer is, not which number an expert happens to have
    ordered = -np.sort(-ratio, axis=1)
    image = axes.imshow(ordered, aspect="auto", cmap=HEAT, interpolation="nearest", vmin=0)
    _layer_ticks(axes, view["layers"])
    axes.set_xlabel("experts of the layer, hottest first")
    _bare(axes)
    _key(figure.colorbar(image, ax=axes, label="tokens over the layer's mean", pad=0.015))
    title(figure, captions.expert_load(document))
    return figure


@themed
def rank_load(document: Document) -> Figure | None:
    """Tokens of each rank over the mean, a panel a placement on one scale; at the right the busiest."""
    view = document["views"].get("rank_load")
    if view is None:
        return None
    from matplotlib.colors import TwoSlopeNorm  # noqa: PLC0415

    variants = captions.distinct(view["variants"])
    ratios = [captions.over_mean(variant["tokens"]) for variant in variants]
    widths = [3.0 / len(variants)] * len(variants) + [0.85]
    figure, axes = new_figure(
        min(4.6, 2.2 + 0.05 * len(ratios[0])), 1, len(widths), squeeze=False, sharey=True, width_ratios=widths
    )
    *panels, lines = axes[0]
    # white is the mean, blue reaches down to an empty rank
    scale = TwoSlopeNorm(1.0, 0.0, max(*(ratio.max() for ratio in ratios), 1.001))
    for number, (panel, variant, ratio) in enumerate(zip(panels, variants, ratios, strict=True)):
        image = panel.imshow(ratio, aspect="auto", cmap="RdBu_r", interpolation="nearest", norm=scale)
        colour = LINES[number % len(LINES)]
        panel.set_title(short(variant["label"]), fontsize=10, loc="left", color=colour, fontweight="bold")
        panel.set_xlabel("rank")
        panel.locator_params(axis="x", integer=True)
        _bare(panel)
        _busiest(lines, ratio, colour)
    for panel in panels[1:]:
        panel.tick_params(axis="y", length=0)
    _layer_ticks(panels[0], view["layers"])
    label = "tokens over the mean rank"
    _key(figure.colorbar(image, ax=list(axes[0]), label=label, location="bottom", shrink=0.5, aspect=40))
    title(figure, captions.rank_load(document))
    return figure


def _busiest(axes: Axes, ratio: NDArray[np.float64], colour: str) -> None:
    """Busiest rank of every layer under one placement, in the colour of its name."""
    marker = "o" if len(ratio) == 1 else ""
    axes.plot(ratio.max(axis=1), range(len(ratio)), color=colour, linewidth=1.4, marker=marker)
    axes.set_xlim(1, None)
    axes.set_title("busiest rank", fontsize=10, loc="left")
    axes.set_xlabel("over the mean")
    axes.tick_params(axis="y", length=0, labelleft=False)
    axes.grid(axis="x", color=FAINT, alpha=0.3, linewidth=0.6)


@themed
def comparison(document: Document) -> Figure | None:
    """Largest rank load of each placement against the proven bound, and the time that follows."""
    rows = document["views"].get("comparison") or []
    if len(rows) < 2 or any(row["lower_bound"] <= 0 for row in rows):
        return None
    timed = all("metrics" in row for row in rows)
    figure, axes = new_figure(1.4 + 0.36 * len(rows), 1, 2 if timed else 1, squeeze=False, sharey=True)
    left = axes[0][0]
    over = [row["objective"] / row["lower_bound"] for row in rows]
    left.barh(range(len(rows)), over, color=COLOURS["compute"], height=0.6)
    left.axvline(1, color=WORSE, linewidth=1.4)
    for place, value in enumerate(over):
        beside(left, value, place, f"{value:.3f}")
    left.set_yticks(range(len(rows)), [short(row["label"]) for row in rows])
    left.set_ylim(len(rows) - 0.4, -0.6)
    left.set_xlim(0, max(over) * 1.18)
    left.set_xlabel("largest rank load over its lower bound (line)")
    left.tick_params(axis="y", length=0)
    if timed:
        _times(axes[0][1], rows, document["headline"])
    title(figure, captions.comparison(document))
    return figure


def _times(axes: Axes, rows: Sequence[Any], headline: str) -> None:
    """Headline time of each placement with its band."""
    metrics = [row["metrics"][headline] for row in rows]
    for place, metric in enumerate(metrics):
        low, high = metric.get("low", metric["value"]), metric.get("high", metric["value"])
        axes.plot([low, high], [place, place], color=FAINT, linewidth=5, alpha=0.45, solid_capstyle="round")
        axes.plot(metric["value"], place, "o", color=COLOURS["compute"], markersize=6)
        axes.text(
            metric["value"], place - 0.18, fmt_seconds(metric["value"]), ha="center", va="bottom", fontsize=9
        )
    axes.spines["left"].set_visible(False)
    axes.locator_params(axis="x", nbins=5)
    time_axis(axes.xaxis, max(metric["value"] for metric in metrics), f"{headline} and its 80 % band")
    axes.tick_params(axis="y", length=0)


@themed
def traffic(document: Document) -> Figure | None:
    """Bytes between ranks (or nodes), scale-up and NIC side by side."""
    view = document["views"].get("traffic")
    if view is None:
        return None
    panels = [(name, np.asarray(view[name], dtype=float)) for name in ("scale_up", "scale_out")]
    panels = [(name, pairs) for name, pairs in panels if pairs.sum() > 0]
    if not panels:
        return None
    figure, axes = new_figure(4.0, 1, 2, squeeze=False)
    if len(panels) == 1:
        axes[0][1].set_axis_off()
    names = {"scale_up": "over the scale-up fabric", "scale_out": "over NICs"}
    for panel, (name, pairs) in zip(axes[0], panels, strict=False):
        _pairs(figure, panel, pairs)
        panel.set_title(f"{names[name]}: {fmt_bytes(pairs.sum())}", fontsize=10, loc="left")
        panel.set_xlabel(f"to {view['scope']}")
        panel.set_ylabel(f"from {view['scope']}")
    title(figure, captions.traffic(document))
    return figure


def _pairs(figure: Figure, panel: Axes, pairs: NDArray[np.float64]) -> None:
    """Heat map of bytes between pairs; pairs without bytes stay blank."""
    from matplotlib.colors import LogNorm, Normalize  # noqa: PLC0415

    shown = np.where(pairs > 0, pairs, np.nan)
    high, low = float(pairs.max()), float(np.nanmin(shown))
    spread = high > LOG_SPREAD * low
    scale = LogNorm(low, high) if spread else Normalize(0, high)
    image = panel.imshow(shown, cmap=HEAT, interpolation="nearest", norm=scale)
    _bare(panel)
    panel.locator_params(nbins=8, integer=True)
    bar = figure.colorbar(image, ax=panel, shrink=0.85, pad=0.02)
    if spread:
        bar.ax.yaxis.set_major_formatter(lambda value, _: fmt_bytes(value))
        bar.ax.yaxis.set_minor_formatter(lambda *_: "")
    else:
        byte_ticks(bar.ax.yaxis, high, most=6)
    _key(bar)


def _layer_ticks(axes: Axes, layers: Sequence[int]) -> None:
    step = max(1, len(layers) // 8)
    places = range(0, len(layers), step)
    axes.set_yticks(list(places), [str(layers[place]) for place in places])
    axes.set_ylabel("layer")


def _bare(axes: Axes) -> None:
    """Heat maps need no frame."""
    axes.spines[:].set_visible(False)
    axes.tick_params(length=2.5)


def _key(bar: Any) -> None:
    """Colour bars need no frame either."""
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=2.5)
