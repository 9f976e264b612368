"""Where the time goes: seconds by operation along the critical path, and communication left exposed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.engine.critical_path import PathStep
from moesim.engine.durations import part_ps, to_seconds
from moesim.engine.program import Program, parts_of
from moesim.engine.spans import ABSENT, Recorded
from moesim.evidence import GRADES, Grade, shares_by_grade
from moesim.units import PS_PER_S


@dataclass(frozen=True, slots=True)
class Share:
    """Seconds of one operation on the critical path.

    Attributes
    ----------
    name, kind : str
        The operation and its category.
    seconds, fraction : float
        Time on the path, and as a share of the path.
    evidence : str
        Grade of its durations.
    sigma : float
        Largest relative standard deviation among its durations.
    """

    name: str
    kind: str
    seconds: float
    fraction: float
    evidence: Grade
    sigma: float


def path_breakdown(
    program: Program, path: Sequence[PathStep], window_ps: tuple[int, int] | None = None
) -> list[Share]:
    """Seconds by operation along ``path``, longest first; they add up to the window.

    The operations of an instruction share its time in proportion: what crowded links add is theirs.

    Parameters
    ----------
    program : Program
        What was run.
    path : sequence of PathStep
        Critical path, without gaps.
    window_ps : (int, int), optional
        Part of the run to account for; steps that reach out of it count in proportion. [ps]
    """
    low, high = window_ps or (path[0].start_ps, path[-1].end_ps) if path else (0, 0)
    totals: dict[tuple[str, str, Grade], list[float]] = {}
    for step in path:
        inside = min(step.end_ps, high) - max(step.start_ps, low)
        if inside <= 0:
            continue
        parts = parts_of(program.instructions[step.instruction])
        rows = [part_ps(part) for part in parts]
        lasting = [int(row[0, step.rank if row.shape[1] > 1 else 0]) for row in rows]
        scale = inside / max(sum(lasting), 1) / PS_PER_S
        for part, own_ps in zip(parts, lasting, strict=True):
            seconds = own_ps * scale
            entry = totals.setdefault((part.name, part.kind, part.estimate.grade), [0.0, 0.0])
            entry[0] += seconds
            entry[1] = max(entry[1], part.estimate.sigma)
    total = sum(entry[0] for entry in totals.values())
    shares = [
        Share(name, kind, seconds, seconds / total if total else 0.0, grade, sigma)
        for (name, kind, grade), (seconds, sigma) in totals.items()
    ]
    return sorted(shares, key=lambda share: (-share.seconds, share.name))


def evidence_shares(shares: Sequence[Share]) -> dict[Grade, float]:
    """Fraction of the time by evidence grade, strongest first."""
    return shares_by_grade({g: sum(s.seconds for s in shares if s.evidence == g) for g in GRADES})


@dataclass(frozen=True)
class Activity:
    """What each rank did with its time, each ``(rank,)``. [s]

    Attributes
    ----------
    compute_s, comm_s : ndarray
        Busy time of the compute and of the communication streams.
    exposed_comm_s : ndarray
        Communication while nothing was computed.
    idle_s : ndarray
        Neither: waiting for other ranks.
    """

    compute_s: NDArray[np.float64]
    comm_s: NDArray[np.float64]
    exposed_comm_s: NDArray[np.float64]
    idle_s: NDArray[np.float64]


def activity(
    program: Program, recorded: Recorded, compute: str, comm: str, makespan_s: float, sample: int = 0
) -> Activity:
    """Time of each rank by what it was spent on, for one stream of each kind."""
    compute_spans = _intervals(program, recorded, compute, sample)
    comm_spans = _intervals(program, recorded, comm, sample)
    compute_s, comm_s, exposed_s = (np.zeros(program.num_ranks) for _ in range(3))
    for rank in range(program.num_ranks):
        busy, talking = compute_spans(rank), comm_spans(rank)
        compute_s[rank] = to_seconds((busy[1] - busy[0]).sum())
        comm_s[rank] = to_seconds((talking[1] - talking[0]).sum())
        exposed_s[rank] = comm_s[rank] - _covered(busy, talking) / PS_PER_S
    idle_s = np.maximum(makespan_s - compute_s - exposed_s, 0.0)  # rounding may leave a negative zero
    return Activity(compute_s, comm_s, exposed_s, idle_s)


def _intervals(
    program: Program, recorded: Recorded, stream: str, sample: int
) -> Callable[[int], tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Function from rank to the (starts, ends) of the busy intervals of one stream, in order."""
    rows = [i for i, ins in enumerate(program.instructions) if ins.stream == stream and parts_of(ins)]
    starts, ends = recorded.starts_ps[rows, sample], recorded.ends_ps[rows, sample]

    def of_rank(rank: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        there = starts[:, rank] != ABSENT
        return starts[there, rank], ends[there, rank]

    return of_rank


def _covered(
    busy: tuple[NDArray[np.int64], NDArray[np.int64]], other: tuple[NDArray[np.int64], NDArray[np.int64]]
) -> int:
    """Length of ``other`` that lies inside ``busy``; both are disjoint intervals in order. [ps]"""
    starts, ends = busy
    if not len(starts) or not len(other[0]):
        return 0
    before = np.concatenate([[0], np.cumsum(ends - starts)])

    def busy_until(time: NDArray[np.int64]) -> NDArray[np.int64]:
        index = np.searchsorted(starts, time, side="right")
        last = np.maximum(index - 1, 0)
        overshoot = np.where(index > 0, np.maximum(ends[last] - time, 0), 0)
        return before[index] - overshoot

    return int((busy_until(other[1]) - busy_until(other[0])).sum())
