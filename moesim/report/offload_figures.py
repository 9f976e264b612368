"""Figures of offload: speed against the size of the cache, and what every lane does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moesim.report.style import (
    COLOURS,
    FAINT,
    PALETTE,
    Document,
    beside,
    new_figure,
    themed,
    title,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@themed
def cache_curve(document: Document) -> Figure | None:
    """Tokens a second and hits against the experts that the device holds of a layer."""
    view = document["views"].get("offload")
    if not view or len(view.get("curve") or ()) < 2:
        return None
    rows = view["curve"]
    figure, axes = new_figure(3.0)
    slots = [row["slots_per_layer"] for row in rows]
    speed = [row["tokens_per_s"] for row in rows]
    axes.plot(slots, speed, color=COLOURS["compute"], marker="o", markersize=4, clip_on=False)
    for row in rows:
        if not row["fits"]:
            axes.plot(
                [row["slots_per_layer"]],
                [row["tokens_per_s"]],
                "o",
                color="white",
                markersize=2,
                clip_on=False,
            )
    axes.set_ylim(0, max(speed) * 1.1)
    axes.set_xlabel("experts of a layer on the device; white centre: more than fit")
    axes.set_ylabel("tokens / s", color=COLOURS["compute"])
    hits = axes.twinx()
    hits.plot(
        slots, [100 * row["hit_fraction"] for row in rows], color=PALETTE[3], linestyle="--", clip_on=False
    )
    hits.set_ylim(0, 100)
    hits.set_ylabel("look-ups that hit (%)", color=PALETTE[3])
    hits.spines["right"].set_visible(True)
    hits.spines["right"].set_color(FAINT)
    gain = speed[-1] / speed[0]
    title(figure, f"From {slots[0]} to {slots[-1]} experts of a layer near: {gain:.2g} times the speed")
    return figure


@themed
def lanes(document: Document) -> Figure | None:
    """Share of the time that device, link, disk and CPU are busy."""
    view = document["views"].get("offload")
    if not view or not view.get("busy_fraction"):
        return None
    busy = view["busy_fraction"]
    figure, axes = new_figure(1.0 + 0.35 * len(busy))
    kinds = {"host to device": "copy", "disk to host": "send", "cpu": "cpu_compute", "pim": "pim_compute"}
    names = list(busy)
    values = [100 * busy[name] for name in names]
    colours = [COLOURS[kinds.get(name, "compute")] for name in names]
    axes.barh(range(len(names)), values, color=colours, height=0.62)
    for place, value in enumerate(values):
        beside(axes, value, place, f"{value:.0f} %")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 112)
    axes.set_xticks([0, 25, 50, 75, 100])
    axes.set_xlabel("busy (% of the time)")
    title(figure, f"Busiest: {max(busy, key=lambda name: busy[name])}")
    return figure
