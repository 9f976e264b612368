"""Pictures of routing traces: a column a trace, with its stand-ins in the same axes, and their page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesim.files import write_text
from moesim.report.style import HEAT, PALETTE, Document, new_figure, svg_text, themed, title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES: dict[str, tuple[str, str, str, bool]] = {
    "load": ("Load of experts", "expert by rank of its load", "load over the mean", False),
    "touched": ("Distinct experts that a batch needs", "tokens of a batch", "experts", True),
    "imbalance": (
        "Busiest of eight ranks in single batches",
        "tokens of a batch",
        "load over the mean",
        True,
    ),
    "repetition": ("Experts chosen again", "tokens apart", "share repeated", True),
    "caching": ("Hit rate of a least-recently-used cache", "cache size over top-k", "hit rate", False),
    "drift": (
        "Drift: likeness of the loads of 256 tokens and of later ones",
        "tokens apart",
        "cosine of loads",
        True,
    ),
}
"""Title, axes, and whether the horizontal axis is logarithmic."""
STYLES = ("-", "--", ":", "-.")
HEIGHT_IN = 3.0
DOMAIN_HEIGHT_IN, CELL_IN = 1.8, 0.3


def draw(picture: str, document: Document) -> Figure | None:
    """One picture: a panel a trace, a line for it and for each stand-in."""
    heading, across, up, logarithmic = PICTURES[picture]

    @themed
    def inside(document: Document) -> Figure | None:
        traces = document["traces"]
        figure, axes = new_figure(HEIGHT_IN, 1, len(traces), squeeze=False, sharey=picture != "touched")
        for panel, trace in zip(axes[0], traces, strict=True):
            for index, (name, curves) in enumerate(trace["curves"].items()):
                curve = curves[picture]
                look = STYLES[index % len(STYLES)]
                colour = PALETTE[(0, 5, 6, 2)[index % 4]]
                panel.plot(curve["x"], curve["y"], look, color=colour, label=name, linewidth=1.6)
            if logarithmic:
                panel.set_xscale("log", base=2)
                panel.xaxis.set_major_formatter("{x:g}")
            panel.set_title(trace["label"], fontsize=10, loc="left")
            panel.set_xlabel(across)
        axes[0][0].set_ylabel(up)
        lines, names = axes[0][0].get_legend_handles_labels()
        figure.legend(lines, names, loc="outside lower center", ncols=len(names), fontsize=8, frameon=False)
        title(figure, heading)
        return figure

    return inside(document)


def draw_domains(document: Document) -> Figure | None:
    """Distance of the loads of every two kinds of text, a square a trace; None where no trace has two."""
    shown = [trace for trace in document["traces"] if len(trace["domains"]["names"]) > 1]
    if not shown:
        return None

    @themed
    def inside(_document: Document) -> Figure | None:
        most = max(len(trace["domains"]["names"]) for trace in shown)
        figure, axes = new_figure(DOMAIN_HEIGHT_IN + CELL_IN * most, 1, len(shown), squeeze=False)
        top = max(max(map(max, trace["domains"]["distance"])) for trace in shown)
        for panel, trace in zip(axes[0], shown, strict=True):
            names, distance = trace["domains"]["names"], trace["domains"]["distance"]
            shades = panel.pcolormesh(distance, cmap=HEAT, vmin=0, vmax=top or 1)
            panel.invert_yaxis()
            panel.set_aspect("equal")
            panel.set_xticks([i + 0.5 for i in range(len(names))], names, rotation=40, ha="right", fontsize=8)
            panel.set_yticks([i + 0.5 for i in range(len(names))], names, fontsize=8)
            panel.grid(visible=False)
            panel.set_title(trace["label"], fontsize=10, loc="left")
            for row, values in enumerate(distance):
                for column, value in enumerate(values):
                    ink = "white" if value < top / 2 else "black"
                    panel.text(
                        column + 0.5,
                        row + 0.5,
                        f"{value:.2f}",
                        ha="center",
                        va="center",
                        color=ink,
                        fontsize=7,
                    )
        figure.colorbar(shades, ax=list(axes[0]), label="1 - cosine of loads", shrink=0.8)
        title(figure, "Distance of kinds of text: loads of their experts, mean over layers")
        return figure

    return inside(document)


def write_trace_page(document: Document, path: Path, *, heading: str) -> Path:
    """Self-contained page of every picture and the table of errors; same document, same bytes."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # noqa: PLC0415
    from markupsafe import Markup  # noqa: PLC0415

    loader = PackageLoader("moesim.report")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    pictures = []
    figures = {name: draw(name, document) for name in PICTURES} | {"domains": draw_domains(document)}
    for name, figure in figures.items():
        if figure is not None:
            # the element is made here from numbers and escaped names, not taken from a file
            pictures.append(Markup(svg_text(figure, name)))  # noqa: S704
    template = environment.get_template("traces.html.j2")
    tables: Sequence[Mapping[str, Any]] = document["traces"]
    return write_text(path, template.render(title=heading, pictures=pictures, traces=tables))
