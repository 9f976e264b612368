"""Seconds of everything that a pipeline does, as one row of picoseconds an instruction of its program."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from moesim.engine.durations import Picoseconds, to_ps
from moesim.errors import InputError, Problem
from moesim.training.pipeline_program import Options, PipelineProgram, Row, Work
from moesim.training.schedules.base import Geometry, Pass

Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PassTimes:
    """Seconds of a step; every array is as small as broadcasting allows.

    Attributes
    ----------
    seconds : mapping of Pass to ndarray
        Broadcasts to ``(sample, replica, stage, chunk, microbatch)``. A pair goes by the chunk and the
        microbatch of its forward; with six axes ``(sample, replica, stage, chunk, other chunk, microbatch)``
        also by the chunk of its backward. [s]
    send_s : ndarray or float
        A message, by its sender: broadcasts to ``(sample, replica, stage)``. [s]
    gather_s, reduce_s : ndarray or float
        Parameters gathered before the first pass of a chunk, gradients reduced after its last backward:
        broadcast to ``(sample, stage, chunk)``. [s]
    optimizer_s : ndarray or float
        Broadcasts to ``(sample, stage)``. [s]
    overlap_gather, overlap_reduce : bool
        Chunk by chunk beside the passes; otherwise before all and after all of them.
    global_norm : bool
        The optimizer waits for the gradients of all stages.
    """

    seconds: Mapping[Pass, Floats]
    send_s: Floats | float = 0.0
    gather_s: Floats | float = 0.0
    reduce_s: Floats | float = 0.0
    optimizer_s: Floats | float = 0.0
    overlap_gather: bool = True
    overlap_reduce: bool = True
    global_norm: bool = True

    def options(self, num_replicas: int) -> Options:
        """What of this shapes the program."""
        return Options(num_replicas, self.overlap_gather, self.overlap_reduce, self.global_norm)


@dataclass(frozen=True, slots=True)
class Checked:
    """Times of one pipeline with all their axes, those of no matter 1 long.

    Attributes
    ----------
    num_samples, num_replicas : int
        Longest of those axes.
    seconds : dict of ndarray
        ``(sample, replica, stage, chunk, other chunk, microbatch)``. [s]
    around : dict of ndarray
        Of sends, gathers, reductions and the optimizer: ``(sample, replica, stage, chunk)``. [s]
    """

    num_samples: int
    num_replicas: int
    seconds: dict[Pass, Floats]
    around: dict[Work, Floats]


def checked(times: PassTimes, kinds: Iterable[Pass], geometry: Geometry) -> Checked:
    """The times of the kinds of passes that a schedule uses, after making sure that they fit its pipeline.

    Raises
    ------
    InputError
        If a kind has no times, an array does not broadcast, is negative or not finite; all at once.
    """
    kinds = sorted(kinds, key=list(Pass).index)
    problems = [
        Problem(f"seconds.{kind}", "the schedule has such passes; accepted: seconds of each kind it uses")
        for kind in kinds
        if kind not in times.seconds
    ]
    seconds = {kind: _pass_axes(times.seconds[kind], kind) for kind in kinds if kind in times.seconds}
    around = {
        Work.SEND: _axes(times.send_s, 3)[..., np.newaxis],
        Work.GATHER: _axes(times.gather_s, 3)[:, np.newaxis],
        Work.REDUCE: _axes(times.reduce_s, 3)[:, np.newaxis],
        Work.UPDATE: _axes(times.optimizer_s, 2)[:, np.newaxis, :, np.newaxis],
    }
    stages, chunks = geometry.num_stages, geometry.num_chunks
    long = (stages, chunks, chunks, geometry.num_microbatches)
    named: list[tuple[str, Floats, tuple[int, ...]]]
    named = [(f"seconds.{kind}", array, long) for kind, array in seconds.items()]
    named += [(f"{work}_s", array, (stages, chunks)) for work, array in around.items()]
    for name, array, sizes in named:
        if array.ndim != 2 + len(sizes) or any(
            n not in (1, m) for n, m in zip(array.shape[2:], sizes, strict=True)
        ):
            accepted = f"what broadcasts to {sizes} behind sample and replica"
            problems.append(Problem(name, f"got shape {array.shape}; accepted: {accepted}"))
        elif not (array.min() >= 0 and array.max() < np.inf):
            problems.append(
                Problem(name, f"got {array.min()} to {array.max()}; accepted: finite, at least 0")
            )
    lengths = [{array.shape[axis] for _, array, _ in named} - {1} for axis in (0, 1)]
    for what, found in zip(("samples", "replicas"), lengths, strict=True):
        if len(found) > 1:
            problems.append(Problem(what, f"got {sorted(found)}; accepted: one number of them"))
    if problems:
        raise InputError(problems)
    num_samples, num_replicas = (max(found, default=1) for found in lengths)
    return Checked(num_samples, num_replicas, seconds, around)


def _axes(values: Floats | float, count: int) -> Floats:
    """Array with axes of length 1 in front, up to ``count``."""
    array = np.asarray(values, dtype=np.float64)
    return array.reshape((1,) * (count - array.ndim) + array.shape)


def _pass_axes(values: Floats, kind: Pass) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    return array if kind is Pass.PAIR and array.ndim == 6 else _axes(array, 5)[..., np.newaxis, :]


def passes_ps(piped: PipelineProgram, geometry: Geometry, times: Checked) -> Picoseconds:
    """Duration of every pass, 0 where a stage has none, ``(slot, sample, stage, replica)``. [ps]"""
    sizes = (times.num_samples, times.num_replicas)
    axes = (geometry.num_stages, geometry.num_chunks, geometry.num_chunks, geometry.num_microbatches)
    passes = np.zeros((piped.num_slots, sizes[0], axes[0], sizes[1]), dtype=np.int64)
    for kind, columns in piped.columns.items():
        values = np.broadcast_to(to_ps(times.seconds[kind]), (*sizes, *axes))
        other = np.maximum(columns.other_chunk, 0)
        taken = values[:, :, columns.stage, columns.chunk, other, columns.microbatch]
        passes[columns.slot, :, columns.stage, :] = taken.transpose(2, 0, 1)
    return passes


def rows_ps(piped: PipelineProgram, times: Checked, passes: Picoseconds) -> list[Picoseconds]:
    """Duration of every instruction, ``(sample or 1, rank or 1)`` each. [ps]

    Parameters
    ----------
    piped, times
        The program and the times.
    passes : ndarray, ``(slot, sample, stage, replica)``
        From :func:`passes_ps`. [ps]
    """
    num_stages, num_chunks = piped.parts.shape
    flat = passes.reshape(*passes.shape[:2], -1)
    around = {
        work: np.broadcast_to(to_ps(values), (len(values), times.num_replicas, num_stages, num_chunks))
        for work, values in times.around.items()
    }
    whole = {work: _on_ranks(values[..., 0]) for work, values in around.items()}
    nothing = np.zeros((1, 1), dtype=np.int64)

    def row_ps(row: Row) -> Picoseconds:
        if row.work is Work.PASS:
            of_slot: Picoseconds = flat[row.slot]
            return of_slot
        if row.chunk_of:
            chosen = np.zeros(around[row.work].shape[:3], dtype=np.int64)
            for stage, chunk in row.chunk_of.items():
                chosen[..., stage] = around[row.work][..., stage, chunk]
            return _on_ranks(chosen)
        return whole.get(row.work, nothing)

    return [row_ps(row) for row in piped.rows]


def _on_ranks(values: Picoseconds) -> Picoseconds:
    """``(sample, replica, stage)`` as ``(sample, rank)``."""
    return values.transpose(0, 2, 1).reshape(len(values), -1)
