"""Pictures of fits against measurements: errors of all kernels, and each family point by point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moesim.report.style import FAINT, INK, PALETTE, Document, new_figure, themed, time_axis, title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROW_IN = 0.5
MARGIN_IN = 1.3
POINTS_IN = 3.6
MOST_POINTS = 500
"""Points of a device drawn in a panel."""

MOST_SHOWN = 0.3
"""Largest median error on the axis; what is beyond sits at its end. [-]"""

MOST_RESIDUAL = 0.8
TICKS = (-0.5, -0.3, -0.1, 0.0, 0.1, 0.3, 0.5, 1.0)
NAMES = {
    "gemm": "Dense GEMM",
    "moe": "Grouped experts",
    "attention_prefill": "Attention, prefill",
    "attention_decode": "Attention, decode",
    "mla_prefill": "Latent attention, prefill",
    "mla_decode": "Latent attention, decode",
    "elementwise": "Element-wise",
    "router": "Router",
}
MARKERS = "os^Dvp*hX"


def errors(rows: Sequence[Mapping[str, Any]]) -> Figure | None:
    """A dot for each kernel at its median held-out error, a row a family, a colour a device."""

    @themed
    def inside(document: Document) -> Figure | None:
        families = sorted({row["family"] for row in document["rows"]}, reverse=True)
        devices = sorted({row["device"] for row in document["rows"]})
        if not families:
            return None
        figure, axes = new_figure(MARGIN_IN + ROW_IN * len(families))
        for at, device in enumerate(devices):
            own = [row for row in document["rows"] if row["device"] == device]
            places = [families.index(row["family"]) + 0.6 * (at + 0.5) / len(devices) - 0.3 for row in own]
            shown = [min(row["median_ape"], MOST_SHOWN) for row in own]
            axes.plot(shown, places, ls="", ms=4, alpha=0.75, label=device, **_look(at))
        for place, family in enumerate(families):
            middle = float(np.median([r["median_ape"] for r in document["rows"] if r["family"] == family]))
            axes.plot([middle, middle], [place - 0.4, place + 0.4], color=INK, lw=1.4)
            axes.annotate(
                f"{100 * middle:.1f} %", (middle, place + 0.4), ha="center", va="bottom", fontsize=8
            )
        axes.set_yticks(range(len(families)), [NAMES.get(family, family) for family in families])
        axes.set_xlim(0, MOST_SHOWN * 1.02)
        axes.set_ylim(-0.6, len(families) - 0.2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        axes.set_xlabel("median error of a kernel on rows its fit did not see; line: median over kernels")
        figure.legend(loc="outside lower center", ncols=min(5, len(devices)), fontsize=8)
        title(figure, "How far predictions are off, kernel by kernel")
        return figure

    return inside({"rows": rows})


def points(family: str, parts: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Predicted over measured time, and the ratio of both over what bounds the kernel.

    Parameters
    ----------
    family : str
    parts : sequence of mapping
        ``{device, measured_s, predicted_s, memory_over_compute}``, each array ``(num_rows,)``.
    """

    @themed
    def inside(document: Document) -> Figure | None:
        figure, (left, right) = new_figure(POINTS_IN, 1, 2)
        low, high = np.inf, 0.0
        for at, part in enumerate(document["parts"]):
            kept = _some(len(part["measured_s"]))
            measured, predicted = part["measured_s"][kept], part["predicted_s"][kept]
            low, high = min(low, float(measured.min())), max(high, float(measured.max()))
            look = {"ls": "", "ms": 2.2, "alpha": 0.5, **_look(at)}
            left.plot(measured, predicted, label=part["device"], **look)
            off = np.clip(np.log(predicted / measured), -MOST_RESIDUAL, MOST_RESIDUAL)
            right.plot(part["memory_over_compute"][kept], off, **look)
        left.plot([low, high], [low, high], color=INK, lw=1)
        left.set(xscale="log", yscale="log")
        for axis, label in ((left.xaxis, "measured"), (left.yaxis, "predicted")):
            time_axis(axis, np.sqrt(low * high), label)
        right.axhline(0, color=INK, lw=1)
        right.set_xscale("log")
        right.xaxis.set_major_formatter("{x:g}")
        right.set_ylim(-MOST_RESIDUAL * 1.05, MOST_RESIDUAL * 1.05)
        right.set_yticks(np.log1p(TICKS), [f"{100 * tick:+.0f} %" for tick in TICKS])
        right.set_xlabel("memory time over arithmetic time")
        right.set_ylabel("predicted over measured")
        right.grid(axis="y", color=FAINT, alpha=0.25, lw=0.6)
        figure.legend(loc="outside lower center", ncols=min(5, len(document["parts"])), fontsize=8)
        title(figure, f"{NAMES.get(family, family)}: rows no fit saw, predicted against measured")
        return figure

    return inside({"parts": parts}) if parts else None


def _look(at: int) -> dict[str, str]:
    return {"marker": MARKERS[at % len(MARKERS)], "color": PALETTE[at % len(PALETTE)]}


def _some(count: int) -> NDArray[np.intp]:
    """Rows at equal distances, at most :data:`MOST_POINTS`."""
    return np.unique(np.linspace(0, count - 1, min(count, MOST_POINTS)).astype(np.intp))
