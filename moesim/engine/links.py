"""Who depends on whom in a program: message pairs and predecessors, derived from program order alone."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from moesim.engine.program import Program, Receive, Send, Wait, participants

RankTask: TypeAlias = tuple[int, int]
"""An instruction on one rank: (instruction index, rank)."""


@dataclass(frozen=True, slots=True)
class Messages:
    """Messages of a program.

    Attributes
    ----------
    source : dict
        The (send, rank) that each (receive, rank) takes its message from.
    unsent : tuple
        Every (receive, rank) for which no message is left.
    unread : tuple
        Every (send, rank) whose message nobody receives.
    """

    source: dict[RankTask, RankTask]
    unsent: tuple[RankTask, ...]
    unread: tuple[RankTask, ...]


def match_messages(program: Program) -> Messages:
    """Pairs of sends and receives: first in, first out per ordered pair of ranks, in program order."""
    queues: dict[tuple[int, int], deque[RankTask]] = {}
    source: dict[RankTask, RankTask] = {}
    unsent: list[RankTask] = []
    for index, instruction in enumerate(program.instructions):
        if isinstance(instruction, Send):
            for rank in np.flatnonzero(instruction.to >= 0).tolist():
                queues.setdefault((rank, int(instruction.to[rank])), deque()).append((index, rank))
        elif isinstance(instruction, Receive):
            for rank in np.flatnonzero(instruction.sender >= 0).tolist():
                queue = queues.get((int(instruction.sender[rank]), rank))
                if queue:
                    source[index, rank] = queue.popleft()
                else:
                    unsent.append((index, rank))
    unread = tuple(sorted(task for queue in queues.values() for task in queue))
    return Messages(source, tuple(unsent), unread)


@dataclass(frozen=True, slots=True, eq=False)
class Predecessors:
    """The instruction before, per instruction and rank; -1 where there is none.

    Attributes
    ----------
    own : ndarray, ``(num_instructions, num_ranks)``
        Last earlier instruction on the same stream of the rank.
    awaited : dict of ndarray, ``(num_ranks,)``
        For each ``Wait``: last earlier instruction on the stream it waits for.
    """

    own: NDArray[np.int32]
    awaited: dict[int, NDArray[np.int32]]


def predecessors(program: Program) -> Predecessors:
    """Immediate predecessors on the streams of a checked program."""
    num_ranks = program.num_ranks
    last = {name: np.full(num_ranks, -1, dtype=np.int32) for name in program.streams}
    own = np.empty((len(program.instructions), num_ranks), dtype=np.int32)
    awaited: dict[int, NDArray[np.int32]] = {}
    for index, instruction in enumerate(program.instructions):
        own[index] = last[instruction.stream]
        if isinstance(instruction, Wait):
            awaited[index] = last[instruction.on].copy()
        last[instruction.stream][participants(instruction, num_ranks)] = index
    return Predecessors(own, awaited)
