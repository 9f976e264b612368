"""Figures of the links: how long each is busy with a step, sound and with faults, alone and beside others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from moesim.report import captions
from moesim.report.style import HEAT, Document, new_figure, themed, time_axis, title

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@themed
def links(document: Document) -> Figure | None:
    """A strip a block of links, coloured by seconds of bytes; with faults the sound network beside it."""
    view = document["views"].get("links")
    if view is None or not view["blocks"]:
        return None
    panels = {"": "seconds"}
    if all("sound_seconds" in block for block in view["blocks"]):
        panels = {"every part sound": "sound_seconds", "with the faults": "seconds"}
    figure, bar, high = _strips(view["blocks"], panels)
    time_axis(bar.ax.yaxis, high, "busy in a step")
    title(figure, captions.links(document))
    return figure


@themed
def crowd(document: Document) -> Figure | None:
    """A strip a block of links, coloured by the share of its rate that the step and that others used."""
    view = document["views"].get("crowd")
    if view is None or not view["blocks"]:
        return None
    figure, bar, _ = _strips(view["blocks"], {"used by the step": "own", "by others": "others"})
    bar.set_label("share of the reached rate")
    title(figure, captions.crowd(document))
    return figure


def _strips(blocks: list[dict[str, Any]], panels: dict[str, str]) -> tuple[Figure, Any, float]:
    """Figure with a column a panel (heading -> field of a block), its colour bar and the highest value."""
    figure, axes = new_figure(1.5 + 0.42 * len(blocks), len(blocks), len(panels), squeeze=False)
    high = max(max(block[name]) for block in blocks for name in panels.values())
    image: Any = None
    for column, (heading, name) in enumerate(panels.items()):
        for row, block in enumerate(blocks):
            panel = axes[row][column]
            strip = np.asarray(block[name], dtype=float)[None]
            image = panel.imshow(strip, aspect="auto", cmap=HEAT, interpolation="nearest", vmin=0, vmax=high)
            panel.set_yticks([0], [block["label"]] if column == 0 else [""])
            panel.tick_params(axis="y", length=0)
            panel.spines[:].set_visible(False)
            panel.locator_params(axis="x", nbins=6, integer=True)
            panel.tick_params(axis="x", length=2, labelsize=7, pad=1)
            if row == 0 and heading:
                panel.set_title(heading, fontsize=10, loc="left")
        axes[-1][column].set_xlabel("number of the link")
    bar = figure.colorbar(image, ax=list(axes.ravel()), pad=0.015)
    bar.outline.set_visible(False)
    return figure, bar, high
