"""Measured times of a fabric's collectives beside the fitted curves, a panel a collective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from moesim.report.style import FAINT, PALETTE, new_figure, theme, title
from moesim.units import KIB, fmt_bytes, fmt_seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 2

NARROW = 30.0
"""Times that spread less than this get ticks between the powers of ten."""


def curve_figure(heading: str, panels: Sequence[Mapping[str, Any]]) -> Figure:
    """Figure of panels ``{title, error, unit, curves: [{label, x, y, measured_x, measured_y}]}``.

    Points were measured, lines are fitted; both axes are logarithmic, x in bytes or tokens.
    """
    with theme():
        rows = -(-len(panels) // COLUMNS)
        figure, axes = new_figure(0.7 + 2.5 * rows, rows, COLUMNS, squeeze=False)
        for panel, axis in zip(panels, axes.ravel(), strict=False):
            for number, curve in enumerate(panel["curves"]):
                colour = PALETTE[number % len(PALETTE)]
                axis.loglog(curve["x"], curve["y"], color=colour, linewidth=1.3, label=curve["label"])
                axis.loglog(
                    curve["measured_x"], curve["measured_y"], "o", color=colour, markersize=2.6, alpha=0.6
                )
            axis.set_title(f"{panel['title']}, {panel['error']}", fontsize=9, loc="left")
            _ticks(axis, panel["unit"])
            axis.set_xlabel("message" if panel["unit"] == "bytes" else "tokens a rank", fontsize=8)
            axis.tick_params(labelsize=7.5)
            axis.grid(color=FAINT, alpha=0.25, linewidth=0.5)
            axis.legend(fontsize=7)
        for axis in axes.ravel()[len(panels) :]:
            axis.set_axis_off()
        title(figure, heading)
        return figure


def _ticks(axis: Axes, unit: str) -> None:
    """Round sizes and times, nothing between them."""
    from matplotlib.ticker import LogLocator  # noqa: PLC0415

    if unit == "bytes":
        axis.set_xticks([float(KIB * 32**power) for power in range(5)])
    axis.xaxis.set_major_formatter(
        lambda v, _: fmt_bytes(v).replace(".00", "") if unit == "bytes" else f"{v:,.0f}"
    )
    axis.yaxis.set_major_formatter(lambda value, _: fmt_seconds(value).replace(".00", "").replace(".0", ""))
    low, high = axis.get_ylim()
    if high < NARROW * low:
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    for side in (axis.xaxis, axis.yaxis):
        side.set_minor_formatter(lambda *_: "")


def spread(values: Any, count: int = 80) -> Any:
    """Points from the least to the largest value, even in the logarithm."""
    return np.geomspace(float(np.min(values)), float(np.max(values)), count)
