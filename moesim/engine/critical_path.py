"""What determines the makespan: the chain of instructions, back from the last end, without a gap."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from moesim.engine.durations import Errors, part_ps
from moesim.engine.links import Messages, Predecessors, RankTask, match_messages, predecessors
from moesim.engine.program import Meet, Part, Program, Receive, Run, Wait, parts_of
from moesim.engine.spans import Recorded


@dataclass(frozen=True, slots=True)
class PathStep:
    """An instruction of a rank on the critical path, ``[start_ps, end_ps)``. [ps]."""

    instruction: int
    rank: int
    start_ps: int
    end_ps: int


def critical_path(program: Program, recorded: Recorded, sample: int = 0) -> list[PathStep]:
    """The instructions that determine the makespan, in order of time.

    The first starts at 0, each starts when the one before ends, the last ends at the makespan: their
    durations add up to it exactly. ``Receive`` and ``Wait`` lead from one stream or rank to another, take no
    time and are left out. Where several causes end together, the own stream is preferred, then the lowest
    rank.

    Parameters
    ----------
    program : Program
        What was executed.
    recorded : Recorded
        Starts and ends from either interpreter.
    sample : int, default 0
        Which sample.
    """
    walker = _Walker(program, recorded, sample)
    steps = []
    task = walker.last()
    while task is not None:
        index, rank = task
        start_ps, end_ps = int(walker.starts[index, rank]), int(walker.ends[index, rank])
        if not isinstance(program.instructions[index], Receive | Wait):
            steps.append(PathStep(index, rank, start_ps, end_ps))
        task = walker.cause(index, rank) if start_ps > 0 else None
    return steps[::-1]


def path_parts(
    program: Program, path: Sequence[PathStep], errors: Errors | None = None, sample: int = 0
) -> list[tuple[PathStep, Part, int]]:
    """Operations on a critical path with their picoseconds; they add up to the makespan exactly.

    Parameters
    ----------
    program : Program
        What was executed.
    path : sequence of PathStep
        From :func:`critical_path`.
    errors : mapping of str to ndarray, ``(num_samples,)``, optional
        The draws that gave the durations (:func:`moesim.engine.durations.durations_ps`).
    sample : int, default 0
        Which sample.
    """
    found = []
    for step in path:
        for part in parts_of(program.instructions[step.instruction]):
            row = part_ps(part, errors)
            of_sample = row[sample if len(row) > 1 else 0]
            found.append((step, part, int(of_sample[step.rank if len(of_sample) > 1 else 0])))
    return found


class _Walker:
    """Finds what an instruction had to wait for."""

    def __init__(self, program: Program, recorded: Recorded, sample: int) -> None:
        self.program = program
        self.starts = recorded.starts_ps[:, sample]
        self.ends = recorded.ends_ps[:, sample]
        self.links: Predecessors = predecessors(program)
        self.messages: Messages = match_messages(program)

    def last(self) -> RankTask | None:
        """Last instruction of the lowest rank that ends at the makespan; None when nothing takes time."""
        if self.ends.size == 0 or self.ends.max() <= 0:
            return None
        instruction, rank = np.nonzero(self.ends == self.ends.max())
        lowest = rank.min()
        return int(instruction[rank == lowest].max()), int(lowest)

    def cause(self, index: int, rank: int) -> RankTask:
        """The instruction whose end let this one start."""
        start_ps = self.starts[index, rank]
        for before, of_rank in self._candidates(index, rank):
            if before >= 0 and self.ends[before, of_rank] == start_ps:
                return before, of_rank
        msg = f"nothing ends when instruction {index} of rank {rank} starts: not recorded from this program"
        raise ValueError(msg)

    def _candidates(self, index: int, rank: int) -> Iterator[RankTask]:
        instruction = self.program.instructions[index]
        yield int(self.links.own[index, rank]), rank
        if isinstance(instruction, Meet):
            for member in np.flatnonzero(instruction.group == instruction.group[rank]).tolist():
                yield int(self.links.own[index, member]), member
        elif isinstance(instruction, Receive):
            yield self.messages.source[index, rank]
        elif isinstance(instruction, Wait):
            yield int(self.links.awaited[index][rank]), rank
        elif isinstance(instruction, Run) and instruction.resource is not None:
            yield from self._holders(instruction, index, rank)

    def _holders(self, run: Run, index: int, rank: int) -> Iterator[RankTask]:
        """Runs that held the resource until this one started; of some length, so that time goes backwards."""
        if run.resource is None:
            return
        start_ps, unit = self.starts[index, rank], run.resource.index[rank]
        for other, what in enumerate(self.program.instructions):
            if (
                isinstance(what, Run)
                and what.resource is not None
                and what.resource.name == run.resource.name
            ):
                held = (what.resource.index == unit) & (self.starts[other] < start_ps)
                for of_rank in np.flatnonzero(held & (self.ends[other] == start_ps)).tolist():
                    yield other, of_rank
