"""One function a figure: document in, figure out, or None where the document lacks that view."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from moesim.report import captions
from moesim.report.style import (
    CATEGORIES,
    COLOURS,
    FAINT,
    HEAT,
    byte_ticks,
    colour_of,
    new_figure,
    save_png,
    title,
)
from moesim.units import fmt_bytes, fmt_seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Document: TypeAlias = Mapping[str, Any]

SMALL_SHARE = 0.004
"""Operations below this share of the time are drawn together."""


def breakdown(document: Document) -> Figure | None:
    """Seconds by operation along the critical path, longest on top."""
    rows = [row for row in document["breakdown"] if row["fraction"] >= SMALL_SHARE]
    if not rows:
        return None
    figure, axes = new_figure(0.9 + 0.3 * len(rows))
    names = [row["name"] for row in rows][::-1]
    seconds = [row["seconds"] for row in rows][::-1]
    bars = axes.barh(names, seconds, color=[colour_of(row["kind"]) for row in rows][::-1], height=0.72)
    for bar, row in zip(bars, rows[::-1], strict=True):
        label = f" {fmt_seconds(row['seconds'])}  {100 * row['fraction']:.1f} %"
        axes.text(bar.get_width(), bar.get_y() + bar.get_height() / 2, label, va="center", fontsize=9)
    axes.set_xlim(0, max(seconds) * 1.22)
    axes.xaxis.set_major_formatter(lambda value, _: fmt_seconds(value))
    axes.tick_params(axis="y", length=0)
    _legend(axes, {row["kind"] for row in rows})
    title(figure, captions.breakdown(document))
    return figure


def sensitivity(document: Document) -> Figure | None:
    """Effect of each knob on the headline metric."""
    rows = document.get("sensitivity") or []
    if not rows:
        return None
    figure, axes = new_figure(0.9 + 0.32 * len(rows))
    changes = np.array([100 * row["change_fraction"] for row in rows])[::-1]
    labels = [row["label"] for row in rows][::-1]
    gains = [COLOURS["copy"] if change < 0 else COLOURS["all_to_all"] for change in changes]
    axes.barh(labels, changes, color=gains, height=0.66)
    for place, change in enumerate(changes):
        side = "right" if change <= 0 else "left"
        axes.text(change, place, f" {change:+.1f} % ", va="center", ha=side, fontsize=9)
    reach = max(abs(changes).max(), 1.0)
    axes.set_xlim(min(changes.min(), 0) - 0.16 * reach, max(changes.max(), 0) + 0.16 * reach)
    axes.axvline(0, color=FAINT, linewidth=0.8)
    axes.set_xlabel(f"change of {document['headline']} (%)")
    axes.tick_params(axis="y", length=0)
    title(figure, captions.sensitivity(document))
    return figure


def expert_load(document: Document) -> Figure | None:
    """Tokens of each expert over the mean of its layer, layers down."""
    view = document["views"].get("expert_load")
    if view is None:
        return None
    tokens = np.asarray(view["tokens"], dtype=float)
    ratio = tokens / np.maximum(tokens.mean(axis=1, keepdims=True), 1e-300)
    figure, axes = new_figure(min(4.6, 1.6 + 0.06 * len(ratio)))
    # every layer sorted: how skewed it is, not which number an expert happens to have
    ordered = -np.sort(-ratio, axis=1)
    image = axes.imshow(ordered, aspect="auto", cmap=HEAT, interpolation="nearest", vmin=0)
    _layer_ticks(axes, view["layers"])
    axes.set_xlabel("experts of the layer, hottest first")
    figure.colorbar(image, ax=axes, label="tokens over the layer's mean", pad=0.015)
    title(figure, captions.expert_load(document))
    return figure


def rank_load(document: Document) -> Figure | None:
    """Tokens of each rank over the mean, a panel a placement, one colour scale."""
    view = document["views"].get("rank_load")
    if view is None:
        return None
    from matplotlib.colors import TwoSlopeNorm  # noqa: PLC0415

    variants = _distinct(view["variants"])
    ratios = [_over_mean(variant["tokens"]) for variant in variants]
    figure, axes = new_figure(
        min(4.4, 1.9 + 0.05 * len(ratios[0])), 1, len(variants), squeeze=False, sharey=True
    )
    # white is the mean, blue reaches down to an empty rank
    scale = TwoSlopeNorm(1.0, 0.0, max(*(ratio.max() for ratio in ratios), 1.001))
    for panel, variant, ratio in zip(axes[0], variants, ratios, strict=True):
        image = panel.imshow(ratio, aspect="auto", cmap="RdBu_r", interpolation="nearest", norm=scale)
        mean = captions.mean_imbalance(variant["tokens"])
        panel.set_title(f"{variant['label']}: {mean:.2f}", fontsize=10, loc="left")
        panel.set_xlabel("rank")
    _layer_ticks(axes[0][0], view["layers"])
    figure.colorbar(image, ax=list(axes[0]), label="tokens over the mean rank", pad=0.015)
    title(figure, "Load of each rank over the mean; beside each name the busiest, averaged over layers")
    return figure


def comparison(document: Document) -> Figure | None:
    """Largest rank load of each placement against the proven bound, and the time that follows."""
    rows = document["views"].get("comparison") or []
    if len(rows) < 2:
        return None
    timed = all("metrics" in row for row in rows)
    figure, axes = new_figure(1.15 + 0.36 * len(rows), 1, 2 if timed else 1, squeeze=False, sharey=True)
    left = axes[0][0]
    labels = [row["label"] for row in rows][::-1]
    over = [row["objective"] / row["lower_bound"] for row in rows][::-1]
    left.barh(labels, over, color=COLOURS["compute"], height=0.6)
    left.axvline(1, color=COLOURS["all_to_all"], linewidth=1.4)
    for place, value in enumerate(over):
        left.text(value, place, f" {value:.3f}", va="center", fontsize=9)
    left.set_xlim(0, max(over) * 1.2)
    left.set_xlabel("largest rank load over its lower bound (line)")
    left.tick_params(axis="y", length=0)
    if timed:
        _times(axes[0][1], rows, document["headline"])
    title(figure, captions.comparison(document))
    return figure


def _times(axes: Axes, rows: list[Any], headline: str) -> None:
    """Headline time of each placement with its band."""
    metrics = [row["metrics"][headline] for row in rows][::-1]
    for place, metric in enumerate(metrics):
        axes.plot([metric["low"], metric["high"]], [place, place], color=FAINT, linewidth=5, alpha=0.45)
        axes.plot(metric["value"], place, "o", color=COLOURS["compute"], markersize=6)
        axes.text(metric["value"], place + 0.2, fmt_seconds(metric["value"]), ha="center", fontsize=9)
    axes.set_ylim(-0.5, len(metrics) - 0.3)
    axes.xaxis.set_major_formatter(lambda value, _: fmt_seconds(value))
    axes.locator_params(axis="x", nbins=4)
    axes.set_xlabel(f"{headline} and its 80 % band")
    axes.tick_params(axis="y", length=0)


def traffic(document: Document) -> Figure | None:
    """Bytes between ranks (or nodes), scale-up and NIC side by side."""
    view = document["views"].get("traffic")
    if view is None:
        return None
    panels = [(name, np.asarray(view[name], dtype=float)) for name in ("scale_up", "scale_out")]
    panels = [(name, pairs) for name, pairs in panels if pairs.sum() > 0]
    if not panels:
        return None
    figure, axes = new_figure(4.1, 1, len(panels), squeeze=False)
    names = {"scale_up": "over the scale-up fabric", "scale_out": "over NICs"}
    for panel, (name, pairs) in zip(axes[0], panels, strict=True):
        shown = np.where(pairs > 0, pairs, np.nan)
        image = panel.imshow(shown, cmap=HEAT, interpolation="nearest", vmin=0)
        panel.set_title(f"{names[name]}: {fmt_bytes(pairs.sum())}", fontsize=10, loc="left")
        panel.set_xlabel(f"to {view['scope']}")
        panel.set_ylabel(f"from {view['scope']}")
        bar = figure.colorbar(image, ax=panel, shrink=0.78, pad=0.02)
        byte_ticks(bar.ax.yaxis, pairs.max())
        if len(panels) == 1:
            panel.set_anchor("W")
    title(figure, captions.traffic(document))
    return figure


def timeline(document: Document) -> Figure | None:
    """Excerpt of the timeline: compute and communication tracks of some ranks."""
    view = document["views"].get("timeline")
    if not view or not view["rows"]:
        return None
    rows = view["rows"]
    figure, axes = new_figure(0.9 + 0.27 * len(rows))
    kinds = set()
    for place, row in enumerate(reversed(rows)):
        for _, kind, _, start, end in row["spans"]:
            kinds.add(kind)
            axes.barh(
                place,
                end - start,
                left=start - view["start_s"],
                height=0.78,
                color=colour_of(kind),
                edgecolor="white",
                linewidth=0.4,
            )
    axes.set_yticks(
        range(len(rows)), [f"rank {r['rank']} {r['stream']}" for r in reversed(rows)], fontsize=8.5
    )
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, view["end_s"] - view["start_s"])
    axes.xaxis.set_major_formatter(lambda value, _: fmt_seconds(value))
    _legend(axes, kinds, above=True)
    title(figure, captions.timeline(document))
    return figure


def memory(document: Document) -> Figure | None:
    """What fills the memory of each kind of rank."""
    view = document.get("memory")
    if not view:
        return None
    rows = view["per_rank"]
    figure, axes = new_figure(1.5 + 0.4 * len(rows))
    names = [n for n in rows[0]["parts"] if any(r["parts"][n] > 0.002 * view["capacity_bytes"] for r in rows)]
    palette = ["#0072B2", "#56B4E9", "#009E73", "#E69F00", "#CC79A7", "#D55E00", "#999999", "#F0E442"]
    left: NDArray[np.float64] = np.zeros(len(rows))
    labels = [f"ranks {row['ranks']}" for row in rows]
    for name, colour in zip(names, palette, strict=False):
        size = np.array([row["parts"][name] for row in rows])
        axes.barh(labels, size, left=left, color=colour, height=0.6, label=name)
        left = left + size
    axes.axvline(view["capacity_bytes"], color=COLOURS["all_to_all"], linewidth=1.4)
    axes.set_xlim(0, view["capacity_bytes"] * 1.03)
    byte_ticks(axes.xaxis, view["capacity_bytes"])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.legend(ncols=4, frameon=False, fontsize=8.5, loc="upper left", bbox_to_anchor=(0, -0.35))
    title(figure, captions.memory(document))
    return figure


FIGURES: dict[str, Callable[[Document], Figure | None]] = {
    "breakdown": breakdown,
    "sensitivity": sensitivity,
    "expert_load": expert_load,
    "rank_load": rank_load,
    "comparison": comparison,
    "traffic": traffic,
    "timeline": timeline,
    "memory": memory,
}
"""Figures of a run in the order of the page."""


def write_figures(document: Document, folder: Path) -> list[Path]:
    """PNG file of every figure the document has data for."""
    written = []
    for name, draw in FIGURES.items():
        figure = draw(document)
        if figure is not None:
            written.append(save_png(figure, folder / f"{name}.png"))
    return written


def _over_mean(tokens: Any) -> NDArray[np.float64]:
    loads: NDArray[np.float64] = np.asarray(tokens, dtype=float)
    return np.asarray(loads / np.maximum(loads.mean(axis=1, keepdims=True), 1e-300))


def _distinct(variants: list[Any]) -> list[Any]:
    """Variants without repetition of a label."""
    return list({variant["label"]: variant for variant in variants}.values())


def _layer_ticks(axes: Axes, layers: list[int]) -> None:
    step = max(1, len(layers) // 8)
    places = range(0, len(layers), step)
    axes.set_yticks(list(places), [str(layers[place]) for place in places])
    axes.set_ylabel("layer")


def _legend(axes: Axes, kinds: set[str], *, above: bool = False) -> None:
    """Colour key of the categories that occur."""
    from matplotlib.patches import Patch  # noqa: PLC0415

    colours = {colour_of(kind) for kind in kinds}
    handles = [Patch(color=COLOURS[k], label=text) for k, text in CATEGORIES.items() if COLOURS[k] in colours]
    if len(handles) < 2:
        return
    place = {"loc": "lower right", "bbox_to_anchor": (1, 0.99)} if above else {"loc": "lower right"}
    axes.legend(handles=handles, frameon=False, fontsize=8.5, ncols=len(handles) if above else 1, **place)
