"""One look for figures, pages and timelines: colours by category, sizes, deterministic output."""

from __future__ import annotations

import io
import re
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from moesim.files import write_bytes
from moesim.units import GIB, KIB, MIB, MS, NS, TIB, US, fmt_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

Document: TypeAlias = Mapping[str, Any]
Draw: TypeAlias = Callable[[Document], "Figure | None"]

COLOURS = {
    "compute": "#0072B2",
    "all_to_all": "#D55E00",
    "all_reduce": "#E69F00",
    "all_gather": "#E69F00",
    "reduce_scatter": "#E69F00",
    "send": "#CC79A7",
    "copy": "#009E73",
    "cpu_compute": "#56B4E9",
    "pim_compute": "#F0E442",
    "idle": "#BBBBBB",
    "several": "#777777",
}
"""Colour-blind safe (Okabe, Ito 2008), the same in figures, pages and timelines."""

CATEGORIES = {
    "compute": "compute",
    "all_to_all": "all-to-all",
    "all_reduce": "other collectives",
    "send": "pipeline",
    "copy": "host link",
    "cpu_compute": "on the CPU",
    "pim_compute": "near memory",
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

PALETTE = ("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#CC79A7", "#D55E00", "#999999", "#F0E442")
"""For what is no category of time; same source."""
RESERVED = PALETTE[6]
"""Of memory that nobody may use."""
PARTS = (*(colour for colour in PALETTE if colour != RESERVED), "#332288", "#882255")
"""Where more parts stand side by side than the palette has colours (Tol 2021)."""

BETTER, WORSE = COLOURS["copy"], COLOURS["all_to_all"]
WIDTH_IN = 8.6
DPI = 150
"""Of PNG files, and of the layout: texts of other sizes are not as wide in proportion."""
INK, FAINT, PAPER = "#222222", "#8a8a8a", "#fefefe"
"""Text, quiet lines, and what separates areas; pages replace the first and last by their own."""
HEAT = "viridis"
TITLE_CHARACTERS = 92
LABEL_CHARACTERS = 36

RC: Any = {
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.facecolor": "none",
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "xtick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.color": FAINT,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.hashsalt": "moesim",
    "svg.fonttype": "none",
}


def colour_of(kind: str) -> str:
    """Colour of a kind of operation; compute's for what is not listed."""
    return COLOURS.get(kind, COLOURS["compute"])


@contextmanager
def theme() -> Iterator[None]:
    """Matplotlib settings of every figure; names in scripts the font lacks are no warning."""
    from matplotlib import rc_context  # noqa: PLC0415 - a second to import

    with rc_context(RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def themed(draw: Draw) -> Draw:
    """Drawing function that runs in :func:`theme`."""

    @wraps(draw)
    def inside(document: Document) -> Figure | None:
        with theme():
            return draw(document)

    return inside


def new_figure(height_in: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """Empty figure of the page's width and its axes (one, or an array)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(WIDTH_IN, height_in), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, **options)


def title(figure: Figure, text: str) -> None:
    """Message of a figure, at its top left."""
    lines = textwrap.fill(text, TITLE_CHARACTERS)
    figure.suptitle(lines, x=0.008, ha="left", fontsize=11, fontweight="bold")


def short(text: str) -> str:
    """Name cut to what fits beside a figure, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= LABEL_CHARACTERS else line[: LABEL_CHARACTERS - 3] + "..."


def beside(axes: Axes, end: float, place: float, text: str, *, left: bool = False) -> None:
    """Text at the end of a horizontal bar, at its right or its left."""
    axes.annotate(
        text,
        (end, place),
        xytext=(-4 if left else 4, 0),
        textcoords="offset points",
        ha="right" if left else "left",
        va="center",
        fontsize=9,
    )


def legend(axes: Axes, kinds: set[str]) -> None:
    """Colour key of the categories that occur, above the axes; none for a single one."""
    colours = {colour_of(kind) for kind in kinds}
    key(axes, {text: COLOURS[k] for k, text in CATEGORIES.items() if COLOURS[k] in colours})


def key(axes: Axes, colours: Mapping[str, str]) -> None:
    """What colours stand for, in a line above the axes; none for a single one."""
    from matplotlib.patches import Patch  # noqa: PLC0415

    if len(colours) > 1:
        axes.legend(
            handles=[Patch(color=colour, label=text) for text, colour in colours.items()],
            ncols=len(colours),
            loc="lower right",
            bbox_to_anchor=(1.012, 0.99),
            handlelength=1.1,
            handleheight=1.1,
            columnspacing=1.4,
        )


def time_axis(axis: Axis, high_s: float, label: str = "") -> None:
    """Plain numbers on a time axis up to ``high_s``, their unit named once."""
    scale, unit = next(
        (s, u) for s, u in ((1.0, "s"), (MS, "ms"), (US, "us"), (NS, "ns")) if high_s >= s or s == NS
    )
    axis.set_major_formatter(lambda value, _: f"{value / scale:.4g}")
    axis.set_label_text(f"{label} ({unit})" if label else unit)


def byte_ticks(axis: Axis, high_bytes: float, most: int = 7) -> None:
    """Ticks of ``axis`` from 0 to ``high_bytes`` at round binary sizes."""
    rough = max(high_bytes, 1.0) / most
    unit = next(size for size in (TIB, GIB, MIB, KIB, 1) if rough >= size or size == 1)
    step = next((n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500) if n * unit >= rough), KIB) * unit
    axis.set_ticks([place * step for place in range(int(high_bytes / step) + 1)])
    axis.set_major_formatter(lambda value, _: fmt_bytes(value).replace(".00", "").replace(".0", ""))


def _laid_out(figure: Figure) -> Figure:
    """Figure whose parts have their places, found once for whatever draws it and as often as it is drawn."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine(None)
    return figure


def svg_text(figure: Figure, name: str) -> str:
    """Figure as an SVG element for a page, the same text for the same figure.

    Texts stay texts, in the ink of the page; nothing points outside the page. ``name`` starts every id,
    so that the figures of a page cannot meet.
    """
    buffer = io.StringIO()
    with theme():
        _laid_out(figure).savefig(
            buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
    whole = buffer.getvalue()
    head, body = whole[whole.index("<svg") :].split(">", 1)
    box = re.findall(r'viewBox="[^"]*"', head)[0]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(rf"(fill|stroke): {INK}", r"\1: currentColor", body)
    body = re.sub(rf"(fill|stroke): {PAPER}", r"\1: var(--paper)", body)
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', body))
    body = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", body)
    body = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{name}-", body)
    return f'<svg role="img" aria-label="{escape(figure.get_suptitle())}" {box}>{body}'


def save_pngs(drawn: Mapping[str, Figure | None], folder: Path) -> list[Path]:
    """PNG file of every figure that there is."""
    return [save_png(figure, folder / f"{name}.png") for name, figure in drawn.items() if figure is not None]


def save_png(figure: Figure, path: Path) -> Path:
    """Figure as a PNG file, the same bytes for the same figure."""
    buffer = io.BytesIO()
    with theme():
        _laid_out(figure).savefig(
            buffer, format="png", dpi=DPI, facecolor="white", metadata={"Software": None}
        )
    return write_bytes(path, buffer.getvalue())
