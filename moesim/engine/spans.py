"""What an interpreter recorded, in columns, and pure helpers on it. Seconds only at the door.

An interpreter records the start and end of every instruction on every rank (:class:`Recorded`). For timelines
and utilisation that becomes a table of the intervals in which a stream was busy (:class:`Spans`): collectives
count from the moment their last member arrived, and waiting is no span.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.engine.durations import Picoseconds, to_seconds
from moesim.engine.program import Program, Receive, Wait

ABSENT = -1
"""Start and end of an instruction on a rank that does not take part."""


@dataclass(frozen=True, slots=True, eq=False)
class Recorded:
    """Start and end of every instruction [ps], ``(num_instructions, num_samples, num_ranks)`` each.

    ``Receive`` and ``Wait`` start and end when the stream may go on. :data:`ABSENT` where a rank does not
    take part.
    """

    starts_ps: Picoseconds
    ends_ps: Picoseconds

    def makespan_ps(self, sample: int = 0) -> int:
        """Latest end of a sample; 0 for an empty program [ps]."""
        ends = self.ends_ps[:, sample]
        return max(int(ends.max()), 0) if ends.size else 0


@dataclass(frozen=True, slots=True, eq=False)
class Spans:
    """Busy intervals in columns of equal length, ordered by instruction and rank.

    Attributes
    ----------
    start_ps, end_ps : ndarray of int64
        ``[start, end)``. [ps]
    rank, stream, instruction : ndarray of int32
        Indices into the program's ranks, streams and instructions.
    """

    start_ps: Picoseconds
    end_ps: Picoseconds
    rank: NDArray[np.int32]
    stream: NDArray[np.int32]
    instruction: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.start_ps)

    @property
    def start_s(self) -> NDArray[np.float64]:
        """Starts [s]."""
        return to_seconds(self.start_ps)

    @property
    def end_s(self) -> NDArray[np.float64]:
        """Ends [s]."""
        return to_seconds(self.end_ps)


def spans_of(program: Program, recorded: Recorded, sample: int = 0) -> Spans:
    """Busy intervals of one sample; ``Receive`` and ``Wait`` take no time and are left out."""
    works = np.array([not isinstance(i, Receive | Wait) for i in program.instructions], dtype=np.bool_)
    streams = np.array([program.streams.index(i.stream) for i in program.instructions], dtype=np.int32)
    starts, ends = recorded.starts_ps[:, sample], recorded.ends_ps[:, sample]
    instruction, rank = np.nonzero((ends != ABSENT) & works[:, np.newaxis])
    return Spans(
        start_ps=starts[instruction, rank],
        end_ps=ends[instruction, rank],
        rank=rank.astype(np.int32),
        stream=streams[instruction],
        instruction=instruction.astype(np.int32),
    )


def busy_ps(spans: Spans, num_streams: int, num_ranks: int) -> Picoseconds:
    """Time in which each stream of each rank did something [ps], ``(num_streams, num_ranks)``."""
    busy = np.zeros((num_streams, num_ranks), dtype=np.int64)
    np.add.at(busy, (spans.stream, spans.rank), spans.end_ps - spans.start_ps)
    return busy


def overlapping(spans: Spans) -> list[tuple[int, int]]:
    """Pairs of row numbers of neighbouring spans of one stream and rank that overlap: always empty.

    Spans are taken in the order of their starts; a span of no length may lie anywhere outside the inside
    of another.
    """
    order = np.lexsort((spans.end_ps, spans.start_ps, spans.stream, spans.rank))
    first, second = order[:-1], order[1:]
    same = (spans.rank[first] == spans.rank[second]) & (spans.stream[first] == spans.stream[second])
    wrong = np.flatnonzero(same & (spans.start_ps[second] < spans.end_ps[first]))
    return [(int(first[i]), int(second[i])) for i in wrong]
