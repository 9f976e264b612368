"""One look for figures, pages and timelines: colours by category, sizes, deterministic output."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesim.files import write_bytes
from moesim.units import GIB, KIB, MIB, TIB, fmt_bytes

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

COLOURS = {
    "compute": "#0072B2",
    "all_to_all": "#D55E00",
    "all_reduce": "#E69F00",
    "all_gather": "#E69F00",
    "reduce_scatter": "#E69F00",
    "send": "#CC79A7",
    "copy": "#009E73",
    "idle": "#BBBBBB",
}
"""Colour-blind safe (Okabe, Ito 2008), the same in figures, pages and timelines."""

CATEGORIES = {
    "compute": "compute",
    "all_to_all": "all-to-all",
    "all_reduce": "other collectives",
    "send": "pipeline",
    "copy": "host link",
    "idle": "idle",
}
"""Legend entries, in order."""

TRACE_COLOURS = {
    "compute": "thread_state_running",
    "all_to_all": "terrible",
    "all_reduce": "bad",
    "all_gather": "bad",
    "reduce_scatter": "bad",
    "send": "thread_state_iowait",
    "copy": "good",
}
"""Nearest reserved colour names of the Chrome trace format."""

WIDTH_IN = 8.6
INK, FAINT = "#222222", "#8a8a8a"
HEAT = "viridis"

RC: Any = {
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.hashsalt": "moesim",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


def colour_of(kind: str) -> str:
    """Colour of a kind of operation; compute's for what is not listed."""
    return COLOURS.get(kind, COLOURS["compute"])


def new_figure(height_in: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """Empty figure of the page's width and its axes (one, or an array)."""
    from matplotlib import rc_context  # noqa: PLC0415 - a second to import
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    with rc_context(RC):
        figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, **options)
    return figure, axes


def title(figure: Figure, text: str) -> None:
    """Message of a figure, at its top left."""
    figure.suptitle(text, x=0.008, ha="left", fontsize=11, fontweight="bold")


def byte_ticks(axis: Axis, high_bytes: float, most: int = 7) -> None:
    """Ticks of ``axis`` from 0 to ``high_bytes`` at round binary sizes."""
    rough = max(high_bytes, 1.0) / most
    unit = next(size for size in (TIB, GIB, MIB, KIB, 1) if rough >= size or size == 1)
    step = next(n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if n * unit >= rough) * unit
    axis.set_ticks([place * step for place in range(int(high_bytes / step) + 1)])
    axis.set_major_formatter(lambda value, _: fmt_bytes(value).replace(".00", "").replace(".0", ""))


def svg_text(figure: Figure) -> str:
    """Figure as an SVG element, the same text for the same figure."""
    from matplotlib import rc_context  # noqa: PLC0415

    buffer = io.StringIO()
    with rc_context(RC):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def save_png(figure: Figure, path: Path) -> Path:
    """Figure as a PNG file, the same bytes for the same figure."""
    from matplotlib import rc_context  # noqa: PLC0415

    buffer = io.BytesIO()
    with rc_context(RC):
        figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return write_bytes(path, buffer.getvalue())
