"""Every figure of a run: document in, figure out, or None where the document lacks that view."""

from __future__ import annotations

from pathlib import Path

from moesim.report.expert_figures import comparison, expert_load, rank_load, traffic
from moesim.report.link_figures import crowd, links
from moesim.report.offload_figures import cache_curve, lanes
from moesim.report.pipeline_figure import pipeline
from moesim.report.serving_figures import batches, latency_curves, service_over_time
from moesim.report.style import Document, Draw, save_pngs
from moesim.report.time_figures import breakdown, memory, sensitivity, timeline

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


def write_figures(document: Document, folder: Path) -> list[Path]:
    """PNG file of every figure the document has data for."""
    return save_pngs({name: draw(document) for name, draw in FIGURES.items()}, folder)
