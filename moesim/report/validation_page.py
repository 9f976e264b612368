"""Page of measured serving runs beside predictions: scatter plots, errors by group, every row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moesim.files import write_text
from moesim.report.style import FAINT, PALETTE, WORSE, Document, new_figure, svg_text, themed, title
from moesim.units import MS, fmt_seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METRICS = {"tpot": "time per output token", "ttft": "time to first token"}
STATISTICS = ("median_ape", "mape", "p90_ape", "bias", "mean_error", "coverage")
HEADINGS = ("median error", "mean", "90 % of runs", "bias", "mean signed", "in band")
WITHIN = 0.25
"""Lines of this relative error are drawn beside the diagonal."""
FAR = 1.5
"""Where the axis of errors ends; a median beyond it is written out."""
BESIDE = {"ha": "right", "va": "center", "fontsize": 8}
WIDE = 300.0
"""Axes over more than this ratio have a label a decade, others at 1, 2 and 5."""
MARKERS = "osD^vP*X"
WORST_ROWS = 40


def write_validation_page(document: Document, path: Path) -> Path:
    """HTML page of a ``validate`` document at ``path``; the same document gives the same bytes."""
    return write_text(path, validation_page(document))


def validation_page(document: Document) -> str:
    """The page as text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # noqa: PLC0415
    from markupsafe import Markup  # noqa: PLC0415

    environment = Environment(
        loader=PackageLoader("moesim.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["percent"] = lambda value: "" if value is None else f"{100 * value:.1f} %"
    environment.filters["seconds"] = lambda value: "" if value is None else fmt_seconds(value)
    figures = {"scatter": scatter(document), "groups": groups(document), "bands": bands(document)}
    drawn = {name: Markup(svg_text(f, name)) for name, f in figures.items() if f is not None}
    measured = [row for row in document["rows"] if row["tpot"]["ape"] is not None]
    worst = sorted(measured, key=lambda row: (-row["tpot"]["ape"], row["id"]))[:WORST_ROWS]
    return environment.get_template("validation.html.j2").render(
        points=document["points"],
        summary=document["summary"],
        figures=drawn,
        metrics=METRICS,
        statistics=dict(zip(STATISTICS, HEADINGS, strict=True)),
        worst=worst,
        warnings=sorted({w for row in document["rows"] for w in row.get("warnings", ())}),
    )


@themed
def scatter(document: Document) -> Figure | None:
    """Predicted against measured, a panel a metric, a colour an engine; both axes logarithmic."""
    rows = document["rows"]
    engines = sorted({row["engine"] for row in rows})
    figure, panels = new_figure(4.4, 1, len(METRICS), squeeze=False)
    for axes, (metric, name) in zip(panels[0], METRICS.items(), strict=True):
        pairs = {engine: _pairs(rows, metric, engine) for engine in engines}
        if not any(len(p) for p in pairs.values()):
            return None
        for index, (engine, points) in enumerate(pairs.items()):
            look = {"s": 9, "alpha": 0.45, "linewidths": 0, "marker": MARKERS[index % len(MARKERS)]}
            axes.scatter(*points.T / MS, color=PALETTE[(0, 5, 2, 3)[index % 4]], label=engine, **look)
        _diagonal(axes, np.concatenate(list(pairs.values())) / MS)
        axes.set_xlabel(f"measured {name} (ms)")
        axes.set_ylabel("predicted (ms)")
    panels[0][0].legend(loc="upper left", markerscale=1.6)
    count = document["summary"]["n_predicted"]
    title(figure, f"{count:,} measured runs: dashed lines are {100 * WITHIN:.0f} % off")
    return figure


@themed
def groups(document: Document) -> Figure | None:
    """Errors of every group with its spread, worst first: quartiles and tenths of signed errors."""
    spread = _group_errors(document["rows"])
    if not spread:
        return None
    ordered = sorted(spread, key=lambda name: -float(np.median(np.abs(spread[name]))))
    figure, axes = new_figure(1.2 + 0.24 * len(ordered))
    for place, name in enumerate(reversed(ordered)):
        tenth, quarter, middle, three, ninety = np.quantile(spread[name], [0.1, 0.25, 0.5, 0.75, 0.9])
        axes.plot([tenth, ninety], [place, place], color=FAINT, linewidth=1)
        axes.plot([quarter, three], [place, place], color=PALETTE[0], linewidth=5, alpha=0.6)
        far = middle > FAR
        axes.plot(
            [min(middle, FAR)], [place], ">" if far else "o", color=PALETTE[0], markersize=4, clip_on=False
        )
        if far:
            axes.annotate(
                f"{100 * middle:+,.0f} %", (FAR, place), (-6, 0), textcoords="offset points", **BESIDE
            )
    axes.axvline(0, color=FAINT, linewidth=1)
    for limit in (-WITHIN, WITHIN):
        axes.axvline(limit, color=WORSE, linewidth=1, linestyle=":")
    axes.set_yticks(range(len(ordered)), list(reversed(ordered)), fontsize=8)
    axes.set_xlim(-1, FAR)
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:+.0f} %")
    axes.set_xlabel("signed error of the time per output token: median, middle half, middle 80 %")
    title(figure, "Errors by model, device and engine")
    return figure


@themed
def bands(document: Document) -> Figure | None:
    """How often the measurement lies inside the predicted band, by engine and metric."""
    rows = document["rows"]
    engines = sorted({row["engine"] for row in rows if row["tpot"]["inside_band"] is not None})
    if not engines:
        return None
    figure, axes = new_figure(1.1 + 0.32 * len(engines))
    for offset, (metric, name) in zip((0.18, -0.18), METRICS.items(), strict=True):
        shares = [
            np.mean(
                [
                    r[metric]["inside_band"]
                    for r in rows
                    if r["engine"] == e and r[metric]["inside_band"] is not None
                ]
            )
            for e in engines
        ]
        colour = PALETTE[0] if metric == "tpot" else PALETTE[3]
        axes.barh(np.arange(len(engines)) + offset, shares, 0.32, color=colour, label=name)
    axes.axvline(0.8, color=WORSE, linewidth=1, linestyle=":")
    axes.set_yticks(range(len(engines)), engines)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axes.legend(loc="lower left", ncols=2, bbox_to_anchor=(0, 1.0))
    title(figure, "Share of runs inside the 80 % band")
    return figure


def _pairs(rows: Sequence[Mapping[str, Any]], metric: str, engine: str) -> Any:
    found = [
        (row[metric]["measured_s"], row[metric]["predicted_s"])
        for row in rows
        if row["engine"] == engine and row[metric]["ape"] is not None
    ]
    return np.array(found, dtype=np.float64).reshape(-1, 2)


def _diagonal(axes: Axes, points: Any) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter  # noqa: PLC0415

    low, high = points.min() / 1.3, points.max() * 1.3
    ends = np.array([low, high])
    axes.plot(ends, ends, color=FAINT, linewidth=1)
    for factor in (1 - WITHIN, 1 + WITHIN):
        axes.plot(ends, factor * ends, color=FAINT, linewidth=0.8, linestyle="--")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1,) if high / low > WIDE else (1, 2, 5), numticks=20))
        axis.set_minor_formatter(NullFormatter())
        axis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")


def _group_errors(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found: dict[str, list[float]] = {}
    for row in rows:
        tpot = row["tpot"]
        if tpot["ape"] is not None:
            name = f"{row['model']} {row['device']} {row['engine']}"
            found.setdefault(name, []).append(tpot["predicted_s"] / tpot["measured_s"] - 1)
    return {f"{name} ({len(values)})": np.array(values) for name, values in found.items()}
