"""Timelines: Chrome trace JSON for Perfetto, and the excerpt that a page draws.

One process a device, one thread a stream. The parts of an instruction are slices one after another;
before a collective, a message or a shared resource the wait is a slice of its own, so slices of a track
never overlap. Every edge is a whole nanosecond: viewers read start and duration apart, each to the
nanosecond, and Perfetto drops a slice that then reaches a nanosecond into the next one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.engine.durations import part_ps
from moesim.engine.program import Instruction, Meet, Part, Program, Receive, Run, parts_of
from moesim.engine.spans import ABSENT, Recorded
from moesim.files import write_gzip
from moesim.report.style import TRACE_COLOURS
from moesim.units import NS, PS_PER_S, US

RANKS_WRITTEN = 64
"""Ranks of a timeline file; more make it slow to open and look alike."""
EXCERPT_RANKS = 6
EXCERPT_LAYERS = 2
PS_PER_NS, NS_PER_US = round(NS * PS_PER_S), round(US / NS)


def write_timeline(
    program: Program, recorded: Recorded, path: Path, *, sample: int = 0, ranks: Sequence[int] | None = None
) -> Path:
    """Gzipped Chrome trace of one sample; the same bytes for the same run.

    Parameters
    ----------
    program : Program
        What was run.
    recorded : Recorded
        Starts and ends of its instructions.
    path : Path
        Usually ``timeline.json.gz``.
    ranks : sequence of int, optional
        Which ranks; the first :data:`RANKS_WRITTEN` by default.
    """
    chosen = list(range(min(program.num_ranks, RANKS_WRITTEN))) if ranks is None else list(ranks)
    slices = _slices(program, recorded, sample, chosen)
    used = {(event["pid"], event["tid"]) for event in slices}
    events: list[dict[str, Any]] = []
    for rank in chosen:
        events.append(_about("process_name", rank, 0, {"name": f"device {rank}"}))
        events.append(_about("process_sort_index", rank, 0, {"sort_index": rank}))
        for stream, name in enumerate(program.streams):
            if (rank, stream) not in used:  # it only passes events on
                continue
            events.append(_about("thread_name", rank, stream, {"name": name}))
            events.append(_about("thread_sort_index", rank, stream, {"sort_index": stream}))
    events += slices
    text = json.dumps({"displayTimeUnit": "ms", "traceEvents": events}, separators=(",", ":"))
    return write_gzip(path, text.encode())


def excerpt(
    program: Program, recorded: Recorded, *, sample: int = 0, num_layers: int = EXCERPT_LAYERS
) -> dict[str, Any]:
    """View of some middle layers on some ranks, as a page draws it.

    Ranks are the least and most busy ones and evenly spaced ones between.
    """
    layered = [i for i, ins in enumerate(program.instructions) if ins.layer is not None and parts_of(ins)]
    layers = sorted({program.instructions[i].layer or 0 for i in layered})
    middle = layers[len(layers) // 2 : len(layers) // 2 + num_layers]
    inside = [i for i in layered if program.instructions[i].layer in middle]
    starts, ends = recorded.starts_ps[:, sample], recorded.ends_ps[:, sample]
    there = ends[inside] != ABSENT
    ranks = _spread(
        program, starts, ends, [i for i in inside if not isinstance(program.instructions[i], Meet)]
    )
    first = int(starts[inside][there].min()) if there.any() else 0
    last = int(ends[inside][there].max()) if there.any() else 0
    shown = inside + _beside(program, starts, ends, first, last)
    edges = {
        i: _edges(parts_of(program.instructions[i]), starts[i], ends[i]).clip(first, last) / PS_PER_S
        for i in shown
    }
    rows = []
    for rank in ranks:
        for stream in program.streams:
            spans = [
                [part.name, part.kind, program.instructions[i].layer, float(begin), float(end)]
                for i in shown
                if program.instructions[i].stream == stream and ends[i, rank] != ABSENT
                for part, begin, end in zip(
                    parts_of(program.instructions[i]), edges[i][:-1, rank], edges[i][1:, rank], strict=True
                )
            ]
            if spans:
                rows.append({"rank": rank, "stream": stream, "spans": spans})
    return {"start_s": first / PS_PER_S, "end_s": last / PS_PER_S, "rows": rows}


def _beside(
    program: Program, starts: NDArray[np.int64], ends: NDArray[np.int64], first: int, last: int
) -> list[int]:
    """Work of no layer, as copies ordered ahead are, while an excerpt lasts."""
    return [
        i
        for i, ins in enumerate(program.instructions)
        if ins.layer is None and parts_of(ins) and ((starts[i] < last) & (ends[i] > first)).any()
    ]


def _spread(
    program: Program, starts: NDArray[np.int64], ends: NDArray[np.int64], work: list[int]
) -> list[int]:
    """Ranks that took part, picked evenly by how busy they were, in rank order."""
    took_part = np.flatnonzero((ends[work] != ABSENT).any(axis=0)) if work else np.arange(program.num_ranks)
    busy = np.where(ends[work] != ABSENT, ends[work] - starts[work], 0).sum(axis=0)[took_part]
    order = took_part[np.argsort(busy, kind="stable")]
    places = np.linspace(0, len(order) - 1, min(EXCERPT_RANKS, len(order))).round().astype(int)
    return sorted({int(order[place]) for place in places})


def _slices(program: Program, recorded: Recorded, sample: int, ranks: Sequence[int]) -> list[dict[str, Any]]:
    """Complete events of every part, and of every wait for another rank or for a shared resource."""
    starts, ends = recorded.starts_ps[:, sample], recorded.ends_ps[:, sample]
    events: list[dict[str, Any]] = []
    free = np.zeros((len(program.streams), program.num_ranks), dtype=np.int64)
    for index, instruction in enumerate(program.instructions):
        stream = program.streams.index(instruction.stream)
        members = [rank for rank in ranks if ends[index, rank] != ABSENT]
        awaited = _awaited(instruction)
        if awaited:
            look = {"cname": "grey", "cat": "wait"}
            for rank in members:
                begin, start = int(free[stream, rank]), int(starts[index, rank])
                if start > begin:
                    events.append(_slice(f"wait for {awaited}", rank, stream, begin, start) | look)
        free[stream, members] = ends[index, members]
        parts = parts_of(instruction)
        if not parts:
            continue
        layer = {} if instruction.layer is None else {"layer": instruction.layer}
        edges = _edges(parts, starts[index], ends[index])
        for number, part in enumerate(parts):
            told = {
                "cname": TRACE_COLOURS.get(part.kind, TRACE_COLOURS["compute"]),
                "cat": part.kind,
                "args": layer | {"evidence": part.estimate.grade, "sigma": part.estimate.sigma},
            }
            for rank in members:
                span = _slice(part.name, rank, stream, int(edges[number, rank]), int(edges[number + 1, rank]))
                events.append(span | told)
    return events


def _edges(parts: Sequence[Part], starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """Start of each part and the end of the last, ``(num_parts + 1, num_ranks)``. [ps]

    Parts follow one another at their nominal durations; the last one ends with its instruction.
    """
    rows = [np.broadcast_to(part_ps(part)[0], starts.shape) for part in parts[:-1]]
    inner = [np.minimum(starts + sum_ps, ends) for sum_ps in np.cumsum(rows, axis=0)] if rows else []
    return np.array([starts, *inner, ends])


def _awaited(instruction: Instruction) -> str:
    """What an instruction waits for beyond its own rank; empty for nothing.

    Waits between streams of one rank have no slice: the other stream shows what is waited for.
    """
    if isinstance(instruction, Meet):
        return "the last rank"
    if isinstance(instruction, Receive):
        return "a message"
    if isinstance(instruction, Run) and instruction.resource is not None:
        return instruction.resource.name
    return ""


def _slice(name: str, rank: int, stream: int, start_ps: int, end_ps: int) -> dict[str, Any]:
    start_ns, end_ns = _whole_ns(start_ps), _whole_ns(end_ps)
    return {
        "ph": "X",
        "name": name,
        "pid": rank,
        "tid": stream,
        "ts": _microseconds(start_ns),
        "dur": _microseconds(end_ns - start_ns),
    }


def _whole_ns(ps: int) -> int:
    """Nearest nanosecond, halves up: the same for the end of a slice and the start of the next."""
    return (ps + PS_PER_NS // 2) // PS_PER_NS


def _microseconds(ns: int) -> float:
    """Microseconds that give ``ns`` back to viewers that round as well as to those that cut off."""
    value = ns / NS_PER_US
    return value if int(value * NS_PER_US) == ns else math.nextafter(value, math.inf)


def _about(what: str, rank: int, stream: int, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": rank, "tid": stream, "args": arguments}
