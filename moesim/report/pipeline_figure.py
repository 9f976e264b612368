"""Picture of a pipeline: stages over time, coloured by pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from moesim.report import captions
from moesim.report.style import (
    FAINT,
    INK,
    PALETTE,
    PAPER,
    Document,
    key,
    new_figure,
    themed,
    time_axis,
    title,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"F": PALETTE[0], "BW": PALETTE[4], "B": PALETTE[3], "W": PALETTE[2]}
NAMES = {
    "F": "forward",
    "BW": "backward",
    "B": "gradient of the input",
    "W": "gradient of the weights",
}
AXES_IN = 7.6
STAGE_IN = 0.3
DIGIT_IN = 0.0083
"""Width of a digit for every point of its size."""
LARGEST, SMALLEST = 7.5, 5.0
"""Sizes of the numbers inside passes. [pt]"""
OUTLINED = 1500
"""More passes are drawn without outlines: they would hide the colours."""


@themed
def pipeline(document: Document) -> Figure | None:
    """Passes of every stage of one replica; a forward beside a backward are halves of one box."""
    view = document["views"].get("pipeline")
    if not view or not view["spans"]:
        return None
    figure, axes = new_figure(1.5 + STAGE_IN * view["num_stages"])
    boxes = [box for span in view["spans"] for box in _boxes(span)]
    _fill(axes, boxes, view["num_chunks"])
    _number(axes, boxes, AXES_IN / view["end_s"])
    axes.set_yticks(range(view["num_stages"]), [f"stage {stage}" for stage in range(view["num_stages"])])
    axes.set_ylim(view["num_stages"] - 0.45, -0.55)
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, view["end_s"])
    time_axis(axes.xaxis, view["end_s"], "time in the step")
    _key(axes, {box[0] for box in boxes}, view["num_chunks"])
    title(figure, captions.pipeline(document))
    return figure


def _number(axes: Axes, boxes: Sequence[Any], per_second_in: float) -> None:
    """Microbatches of the passes, as large as there is room; none where they could not be read."""
    for kind, chunk, number, top, height, start, end in boxes:
        room = ((end - start) * per_second_in - 0.01) / (len(str(number)) * DIGIT_IN)
        size = min(room, LARGEST if height > 0.5 else SMALLEST + 0.5)
        if size >= SMALLEST:
            ink = INK if kind == "B" and not chunk else "white"
            where = ((start + end) / 2, top + height / 2)
            axes.text(*where, str(number), ha="center", va="center_baseline", fontsize=size, color=ink)


def _boxes(span: Sequence[Any]) -> list[tuple[str, int, int, float, float, float, float]]:
    """Pass, chunk, microbatch, upper edge, height, start and end of each box that shows a span."""
    stage, kind, microbatch, chunk, other_microbatch, other_chunk, start, end = span
    if kind != "FB":
        return [(kind, chunk, microbatch, stage - 0.42, 0.84, start, end)]
    return [
        ("F", chunk, microbatch, stage - 0.42, 0.42, start, end),
        ("BW", other_chunk, other_microbatch, stage, 0.42, start, end),
    ]


def _fill(axes: Axes, boxes: Sequence[Any], num_chunks: int) -> None:
    """All boxes of a pass and chunk as one collection."""
    from matplotlib.collections import PolyCollection  # noqa: PLC0415 - a second to import

    outline = 0.5 if len(boxes) <= OUTLINED else 0.0
    groups: dict[tuple[str, int], list[Any]] = {}
    for kind, chunk, _, top, height, start, end in boxes:
        corners = [(start, top), (end, top), (end, top + height), (start, top + height)]
        groups.setdefault((kind, chunk), []).append(corners)
    for (kind, chunk), corners in sorted(groups.items()):
        colour = shade(COLOURS[kind], chunk, num_chunks)
        axes.add_collection(PolyCollection(corners, facecolors=colour, edgecolors=PAPER, linewidths=outline))


def shade(colour: str, chunk: int, num_chunks: int) -> tuple[float, float, float]:
    """Colour of a pass through a chunk: later chunks are darker, as far as white digits stay readable."""
    from matplotlib.colors import to_rgb  # noqa: PLC0415

    factor = 1.0 - (0.4 * chunk / (num_chunks - 1) if num_chunks > 1 else 0.0)
    red, green, blue = to_rgb(colour)
    return red * factor, green * factor, blue * factor


def _key(axes: Axes, kinds: set[str], num_chunks: int) -> None:
    key(axes, {name: COLOURS[kind] for kind, name in NAMES.items() if kind in kinds})
    if num_chunks > 1:
        axes.annotate(
            f"darker: later ones of {num_chunks} chunks",
            (0, 1),
            xytext=(0, 7),
            xycoords="axes fraction",
            textcoords="offset points",
            fontsize=8.5,
            color=FAINT,
        )
