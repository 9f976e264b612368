"""A step of the pipeline: passes of all stages and replicas in the order of a schedule, over all samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from moesim.engine import Durations, Program, Recorded, to_seconds, vector
from moesim.engine.durations import Picoseconds
from moesim.evidence import Grade
from moesim.training.orders import sequence
from moesim.training.pass_times import Floats, PassTimes, checked, passes_ps, rows_ps
from moesim.training.pipeline_program import Options, PipelineProgram, Work, build
from moesim.training.schedules.base import Geometry, Schedule
from moesim.units import PS_PER_S

__all__ = ["PassTimes", "PipelineRun", "RecordedPipeline", "record_pipeline", "simulate_pipeline"]

EXPOSED = (Work.SEND, Work.GATHER, Work.REDUCE, Work.UPDATE)
"""What is added to the passes one after another to see what it costs."""

SAMPLES_AT_ONCE = 16
"""More at a time would only take more memory."""


@dataclass(frozen=True, eq=False)
class PipelineRun:
    """Outcome of a step.

    The makespan is that of the passes alone (``passes_s``) and what each of ``send``, ``gather``, ``reduce``
    and ``optimizer`` adds when it joins, in this order (``exposed_s``).

    Attributes
    ----------
    makespan_s, passes_s : ndarray, ``(sample,)``
        Of the whole step, and of its passes without anything around them. [s]
    busy_s : ndarray, ``(sample, replica, stage)``
        Seconds of passes. [s]
    exposed_s : dict of ndarray, ``(sample,)``
        What is not hidden under passes or bubbles. [s]
    """

    makespan_s: Floats
    passes_s: Floats
    busy_s: Floats
    exposed_s: dict[str, Floats]

    @property
    def bubble_s(self) -> Floats:
        """Idle time of the mean stage while passes alone run, ``(sample,)``. [s]"""
        return np.asarray(self.passes_s - self.busy_s.mean(axis=(1, 2)))

    @property
    def bubble_fraction(self) -> Floats:
        """That over the step, ``(sample,)``. [-]"""
        return np.divide(
            self.bubble_s, self.makespan_s, out=np.zeros_like(self.makespan_s), where=self.makespan_s > 0
        )


@dataclass(frozen=True, eq=False)
class RecordedPipeline:
    """One sample of a step, task by task.

    Attributes
    ----------
    program : Program
        Every task an instruction with a name; rank ``stage * num_replicas + replica``.
    recorded : Recorded
        Starts and ends; one sample.
    view : dict
        For pictures: ``num_stages``, ``num_chunks``, ``num_microbatches``, ``end_s`` and ``spans`` of the
        first replica, each ``[stage, pass, microbatch, chunk, other microbatch, other chunk, start, end]``.
    """

    program: Program
    recorded: Recorded
    view: dict[str, object]


def simulate_pipeline(schedule: Schedule, geometry: Geometry, times: PassTimes) -> PipelineRun:
    """Makespan of a step and what it is made of.

    Raises
    ------
    InputError
        If the schedule cannot have this geometry, stages wait for each other, or passes have no times.
    """
    seconds = checked(times, sequence(schedule, geometry).kinds, geometry)
    piped, program = compiled(schedule, geometry, times.options(seconds.num_replicas))
    passes = passes_ps(piped, geometry, seconds)
    rows = rows_ps(piped, seconds, passes)
    Durations.from_rows(rows)  # makes sure that they are within the clock's range
    there = {spec.work for spec, row in zip(piped.rows, rows, strict=True) if row.any()}
    joining = [work for work in EXPOSED if work in there]
    reached_s = _makespans_s(program, piped, rows, joining, seconds.num_samples)
    added_s = dict(zip(joining, np.diff(reached_s, axis=0), strict=True))
    nothing_s = np.zeros(seconds.num_samples)
    exposed = {str(work): added_s.get(work, nothing_s) for work in EXPOSED}
    busy = to_seconds(passes.sum(axis=0).transpose(0, 2, 1))
    return PipelineRun(reached_s[-1], reached_s[0], busy, exposed)


def _makespans_s(
    program: vector.Compiled,
    piped: PipelineProgram,
    rows: Sequence[Picoseconds],
    joining: Sequence[Work],
    num_samples: int,
) -> Floats:
    """Makespans of the passes alone, and as each of ``joining`` joins them, ``(1 + joining, sample)``. [s]

    All variants of some samples lie beside each other on the sample axis, and run at once.
    """
    count = 1 + len(joining)
    joins_at = {work: at for at, work in enumerate(joining, 1)}
    makespans = np.empty((count, num_samples), dtype=np.int64)
    for first in range(0, num_samples, SAMPLES_AT_ONCE):
        block = slice(first, min(first + SAMPLES_AT_ONCE, num_samples))
        width = block.stop - first
        known: dict[int, Picoseconds] = {}  # all messages share one row
        for spec, row in zip(piped.rows, rows, strict=True):
            if id(row) not in known:
                own = row[block] if len(row) > 1 else row
                known[id(row)] = _variants(own, joins_at.get(spec.work, 0), count, width)
        stacked = Durations(count * width, tuple(known[id(row)] for row in rows))
        makespans[:, block] = vector.run(program, stacked).makespan_ps.reshape(count, width)
    return to_seconds(makespans)


def _variants(row: Picoseconds, joins: int, count: int, width: int) -> Picoseconds:
    """A row for ``count`` variants of ``width`` samples, 0 in those before the one where it joins."""
    if len(row) == 1 and not joins:
        return row
    counts = (np.arange(count) >= joins).astype(np.int64)[:, np.newaxis, np.newaxis]
    return np.asarray((counts * np.broadcast_to(row, (width, row.shape[1]))).reshape(count * width, -1))


def record_pipeline(
    schedule: Schedule, geometry: Geometry, times: PassTimes, *, sample: int = 0, grade: Grade = "assumed"
) -> RecordedPipeline:
    """One sample of a step with the start and end of every task.

    Parameters
    ----------
    schedule, geometry, times
        As :func:`simulate_pipeline`.
    sample : int, default 0
        Which one.
    grade : str
        Evidence that timelines show for all seconds.
    """
    passes = sequence(schedule, geometry)
    seconds = checked(times, passes.kinds, geometry)
    piped = build(passes, times.options(seconds.num_replicas), one_by_one=True, grade=grade)
    rows = rows_ps(piped, seconds, passes_ps(piped, geometry, seconds))
    one = [row[sample : sample + 1] if len(row) > 1 else row for row in rows]
    run = vector.run(vector.compile(piped.program), Durations.from_rows(one), record=True)
    if run.recorded is None:
        raise RuntimeError("asked for a record, got none")
    view = {
        "num_stages": geometry.num_stages,
        "num_chunks": geometry.num_chunks,
        "num_microbatches": geometry.num_microbatches,
        "end_s": run.recorded.makespan_ps() / PS_PER_S,
        "spans": _spans(piped, run.recorded, seconds.num_replicas),
    }
    return RecordedPipeline(piped.program, run.recorded, view)


def _spans(piped: PipelineProgram, recorded: Recorded, num_replicas: int) -> list[list[object]]:
    """Passes of the first replica, in the order of their starts on each stage."""
    of_slot = {spec.slot: i for i, spec in enumerate(piped.rows) if spec.work is Work.PASS}
    starts, ends = to_seconds(recorded.starts_ps[:, 0]), to_seconds(recorded.ends_ps[:, 0])
    spans: list[list[object]] = []
    for kind, columns in piped.columns.items():
        for task in zip(*(column.tolist() for column in columns), strict=True):
            slot, stage, chunk, other_chunk, microbatch, other_microbatch = task
            at, rank = of_slot[slot], stage * num_replicas
            whose = [microbatch, chunk, other_microbatch, other_chunk]
            spans.append([stage, str(kind), *whose, float(starts[at, rank]), float(ends[at, rank])])
    return sorted(spans, key=lambda span: (span[0], span[-2], span[-1]))


@lru_cache(maxsize=64)
def compiled(
    schedule: Schedule, geometry: Geometry, options: Options
) -> tuple[PipelineProgram, vector.Compiled]:
    """Program of a pipeline, ready for any times; kept for the next call."""
    piped = build(sequence(schedule, geometry), options)
    return piped, vector.compile(piped.program)
