"""Every figure of a run: document in, figure out, or None where the document lacks that view."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moesim.report.expert_figures import comparison, expert_load, rank_load, traffic
from moesim.report.link_figures import crowd, links
from moesim.report.offload_figures import cache_curve, lanes
from moesim.report.pipeline_figure import pipeline
from moesim.report.serving_figures import batches, latency_curves, service_over_time
from moesim.report.style import Document, Draw
from moesim.report.time_figures import breakdown, memory, sensitivity, timeline

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES: dict[str, Draw] = {
    "latency_curves": latency_curves,
    "service_over_time": service_over_time,
    "batches": batches,
    "breakdown": breakdown,
    "sensitivity": sensitivity,
    "cache_curve": cache_curve,
    "lanes": lanes,
    "expert_load": expert_load,
    "rank_load": rank_load,
    "comparison": comparison,
    "traffic": traffic,
    "links": links,
    "crowd": crowd,
    "pipeline": pipeline,
    "timeline": timeline,
    "memory": memory,
}
"""Figures of a run in the order of the page."""


def drawn(document: Document) -> dict[str, Figure]:
    """Every figure the document has data for, for its page and its PNG files alike."""
    figures = ((name, draw(document)) for name, draw in FIGURES.items())
    return {name: figure for name, figure in figures if figure is not None}
