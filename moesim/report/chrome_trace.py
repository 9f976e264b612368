"""Timelines: Chrome trace JSON for Perfetto, and the excerpt that a page draws.

One process a device, one thread a stream. The parts of an instruction are slices one after another;
before a collective the wait for its last member is a slice of its own, so slices of a track never
overlap.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.engine.durations import part_ps
from moesim.engine.program import Meet, Part, Program, parts_of
from moesim.engine.spans import ABSENT, Recorded
from moesim.files import write_gzip
from moesim.report.style import TRACE_COLOURS
from moesim.units import PS_PER_S, US

RANKS_WRITTEN = 64
"""Ranks of a timeline file; more make it slow to open and look alike."""
EXCERPT_RANKS = 6
EXCERPT_LAYERS = 2
PS_PER_US = US * PS_PER_S


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
    events: list[dict[str, Any]] = []
    for rank in chosen:
        events.append(_name("process_name", rank, 0, f"device {rank}"))
        events += [_name("thread_name", rank, i, stream) for i, stream in enumerate(program.streams)]
    events += _slices(program, recorded, sample, chosen)
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
    rows = []
    for rank in ranks:
        for stream in program.streams:
            spans = [
                [name, kind, program.instructions[i].layer, start / PS_PER_S, end / PS_PER_S]
                for i in inside
                if program.instructions[i].stream == stream and ends[i, rank] != ABSENT
                for name, kind, start, end in _part_times(
                    parts_of(program.instructions[i]), rank, int(starts[i, rank]), int(ends[i, rank])
                )
            ]
            if spans:
                rows.append({"rank": rank, "stream": stream, "spans": spans})
    return {"start_s": first / PS_PER_S, "end_s": last / PS_PER_S, "rows": rows}


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
    starts, ends = recorded.starts_ps[:, sample], recorded.ends_ps[:, sample]
    events: list[dict[str, Any]] = []
    free = np.zeros((len(program.streams), program.num_ranks), dtype=np.int64)
    for index, instruction in enumerate(program.instructions):
        stream = program.streams.index(instruction.stream)
        parts = parts_of(instruction)
        for rank in ranks:
            start, end = int(starts[index, rank]), int(ends[index, rank])
            if end == ABSENT:
                continue
            waited = start - int(free[stream, rank])
            if isinstance(instruction, Meet) and waited > 0:
                wait = _slice("wait for the last rank", rank, stream, start - waited, start)
                events.append(wait | {"cname": "grey"})
            free[stream, rank] = end
            arguments = {} if instruction.layer is None else {"layer": instruction.layer}
            for part, (name, kind, begin, finish) in zip(
                parts, _part_times(parts, rank, start, end), strict=True
            ):
                event = _slice(name, rank, stream, begin, finish)
                event["args"] = arguments | {"evidence": part.estimate.grade, "sigma": part.estimate.sigma}
                event["cname"] = TRACE_COLOURS.get(kind, TRACE_COLOURS["compute"])
                events.append(event)
    return events


def _part_times(parts: Sequence[Part], rank: int, start: int, end: int) -> list[tuple[str, str, int, int]]:
    """Name, kind, start and end of each part; the last one ends with its instruction. [ps]"""
    times, at = [], start
    for number, part in enumerate(parts):
        row = part_ps(part)[0]
        finish = end if number == len(parts) - 1 else min(end, at + int(row[rank if len(row) > 1 else 0]))
        times.append((part.name, part.kind, at, finish))
        at = finish
    return times


def _slice(name: str, rank: int, stream: int, start_ps: int, end_ps: int) -> dict[str, Any]:
    return {
        "ph": "X",
        "name": name,
        "pid": rank,
        "tid": stream,
        "ts": start_ps / PS_PER_US,
        "dur": (end_ps - start_ps) / PS_PER_US,
    }


def _name(what: str, rank: int, stream: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": rank, "tid": stream, "args": {"name": name}}
