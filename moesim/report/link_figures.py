"""Figure of the links: how long each is busy with a step's dispatch and combine, sound and with faults."""

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
    blocks = view["blocks"]
    panels = {"": "seconds"}
    if all("sound_seconds" in block for block in blocks):
        panels = {"every part sound": "sound_seconds", "with the faults": "seconds"}
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
    time_axis(bar.ax.yaxis, high, "busy in a step")
    title(figure, captions.links(document))
    return figure
