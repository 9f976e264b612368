"""The stream program of a pipeline: passes, messages, gathers, reductions and the optimizer on their streams.

Ranks are ``stage * num_replicas + replica``. Tasks of one level of the sequence become one instruction over
all stages, which the vector interpreter takes in one step; with ``one_by_one`` every task is an instruction
with a name of its own, for timelines. Both hold the same work in the same order on every stream.

======== ==================================================================================================
stream   work
======== ==================================================================================================
passes   forwards and backwards; waits for messages and, before the first pass of a chunk, for its weights
up, down messages to the next stage, and to any other; a sender goes on while they travel
gather   parameters of each chunk, in the order of first use
reduce   gradients of each part of the model, when the last of its holders has them
update   the optimizer, after all of the above
======== ==================================================================================================
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import groupby
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.engine.program import Instruction, Meet, Part, Program, RankIndex, Receive, Run, Send, Wait
from moesim.evidence import Estimate, Grade
from moesim.training.orders import Deed, PassSequence, Placed
from moesim.training.schedules.base import Pass, Task

PASSES, UP, DOWN, GATHER, REDUCE, UPDATE = STREAMS = ("passes", "up", "down", "gather", "reduce", "update")


class Work(StrEnum):
    """What an instruction's seconds are."""

    PASS = "pass"
    SEND = "send"
    GATHER = "gather"
    REDUCE = "reduce"
    UPDATE = "optimizer"
    NOTHING = ""


KIND_OF_WORK = {
    Work.PASS: "compute",
    Work.SEND: "send",
    Work.GATHER: "all_gather",
    Work.REDUCE: "reduce_scatter",
    Work.UPDATE: "compute",
}


class Row(NamedTuple):
    """Where the seconds of an instruction come from.

    ``slot`` numbers the instructions that hold passes, ``chunk_of`` says whose chunk is gathered or reduced.
    """

    work: Work
    slot: int = -1
    chunk_of: Mapping[int, int] = {}


@dataclass(frozen=True, slots=True)
class Options:
    """How communication around the passes is issued.

    Attributes
    ----------
    num_replicas : int
        Modelled data-parallel replicas of the pipeline.
    overlap_gather, overlap_reduce : bool
        Each chunk by itself beside the passes; otherwise all of them before the first, or after the last.
    global_norm : bool
        The optimizer waits for the gradients of all stages (clipping by the global norm).
    """

    num_replicas: int = 1
    overlap_gather: bool = True
    overlap_reduce: bool = True
    global_norm: bool = True


class Columns(NamedTuple):
    """Tasks of one kind, ``(task,)`` each: in which slot, on which stage, and whose."""

    slot: NDArray[np.int64]
    stage: NDArray[np.int64]
    chunk: NDArray[np.int64]
    other_chunk: NDArray[np.int64]
    microbatch: NDArray[np.int64]
    other_microbatch: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class PipelineProgram:
    """A program, and which seconds each of its instructions takes.

    Attributes
    ----------
    program : Program
        Streams :data:`STREAMS`, more where stages share parts of the model.
    rows : tuple of Row
        One an instruction.
    num_slots : int
        Instructions that hold passes.
    columns : dict of Columns
        Tasks of each kind.
    parts : ndarray of int, ``(stage, chunk)``
        Part of the model that each chunk is.
    """

    program: Program
    rows: tuple[Row, ...]
    num_slots: int
    columns: dict[Pass, Columns]
    parts: NDArray[np.int64]


def build(
    sequence: PassSequence, options: Options, *, one_by_one: bool = False, grade: Grade = "assumed"
) -> PipelineProgram:
    """Program of a sequence of passes.

    Parameters
    ----------
    sequence : PassSequence
        From :func:`moesim.training.orders.sequence`.
    options : Options
        Replicas and overlap.
    one_by_one : bool, default False
        One named instruction a task.
    grade : str
        Evidence that timelines show for the seconds.
    """
    emitter = _Emitter(sequence, options, one_by_one, grade)
    for _, level in groupby(sequence.placed, key=lambda placed: placed.level):
        tasks = list(level)
        for group in ([task] for task in tasks) if one_by_one else [tasks]:
            emitter.add(group)
    emitter.finish()
    program = Program(emitter.num_stages * options.num_replicas, emitter.streams, tuple(emitter.instructions))
    return PipelineProgram(
        program, tuple(emitter.rows), emitter.num_slots, _columns(sequence, emitter.slot_of), sequence.parts
    )


def _columns(sequence: PassSequence, slot_of: list[int]) -> dict[Pass, Columns]:
    rows: dict[Pass, list[tuple[int, ...]]] = {}
    for slot, placed in zip(slot_of, sequence.placed, strict=True):
        task = placed.task
        row = (slot, placed.stage, task.chunk, task.other_chunk, task.microbatch, task.other_microbatch)
        rows.setdefault(task.kind, []).append(row)
    return {kind: Columns(*np.array(of_kind).T) for kind, of_kind in rows.items()}


@dataclass(slots=True)
class _Emitter:
    """Instructions in program order, and what is under way between them."""

    sequence: PassSequence
    options: Options
    named: bool
    grade: Grade
    instructions: list[Instruction] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    slot_of: list[int] = field(default_factory=list)
    num_slots: int = 0
    gathered: set[tuple[int, int]] = field(default_factory=set)
    posted: dict[tuple[int, int], deque[Deed]] = field(default_factory=dict)
    weights_left: dict[tuple[int, int], int] = field(default_factory=dict)
    holders: dict[int, dict[int, int]] = field(default_factory=dict)
    receivers: dict[Deed, int] = field(default_factory=dict)
    masks: dict[frozenset[int], NDArray[np.bool_]] = field(default_factory=dict)
    peers: dict[tuple[tuple[int, int], ...], RankIndex] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for (stage, chunk), part in np.ndenumerate(self.sequence.parts):
            self.holders.setdefault(int(part), {})[stage] = chunk
        for placed in self.sequence.placed:
            if placed.task.weights is not None:
                key = (placed.stage, placed.task.weights[1])
                self.weights_left[key] = self.weights_left.get(key, 0) + 1
            for need in placed.needs:
                self.receivers[need] = placed.stage

    @property
    def num_stages(self) -> int:
        return len(self.sequence.parts)

    @property
    def streams(self) -> tuple[str, ...]:
        shared = any(len(stages) > 1 for stages in self.holders.values())
        return STREAMS + tuple(_done(c) for c in range(self.sequence.parts.shape[1]) if shared)

    def add(self, group: list[Placed]) -> None:
        """Passes of some stages, with everything that belongs before and after them."""
        self._gather(group)
        self._receive(group)
        name = _name(group[0].task, self.sequence.parts.shape[1])
        mask = self._mask(placed.stage for placed in group)
        row = Row(Work.PASS, self.num_slots)
        self._put(Run(PASSES, self._parts(Work.PASS, name), ranks=mask), row)
        self.slot_of += [self.num_slots] * len(group)
        self.num_slots += 1
        self._send(group, name)
        for placed in group:
            self._count_weights(placed)

    def finish(self) -> None:
        """Reductions that were left for the end, and the optimizer."""
        if not self.options.overlap_reduce:
            self._put(Wait(REDUCE, PASSES))
            for part in reversed(range(self.sequence.num_parts)):
                self._reduce(part)
        self._put(Wait(UPDATE, PASSES))
        self._put(Wait(UPDATE, REDUCE))
        num_ranks = self.num_stages * self.options.num_replicas
        if self.options.global_norm and num_ranks > 1:
            self._put(Meet(UPDATE, np.zeros(num_ranks, dtype=np.int64), ()))
        self._put(Run(UPDATE, self._parts(Work.UPDATE, "optimizer")), Row(Work.UPDATE))

    def _put(self, instruction: Instruction, row: Row = Row(Work.NOTHING)) -> None:  # noqa: B008 - immutable
        self.instructions.append(instruction)
        self.rows.append(row)

    def _parts(self, work: Work, name: str) -> tuple[Part, ...]:
        if not self.named:
            return ()
        return (Part(name, KIND_OF_WORK[work], Estimate(0.0, "pipeline", self.grade, 0.0)),)

    def _mask(self, stages: Iterable[int]) -> NDArray[np.bool_]:
        key = frozenset(stages)
        if key not in self.masks:  # shared, so that what reads the program looks at each once
            mask = np.zeros((self.num_stages, self.options.num_replicas), dtype=np.bool_)
            mask[list(key)] = True
            self.masks[key] = mask.ravel()
        return self.masks[key]

    def _peers(self, peer_of: Mapping[int, int]) -> RankIndex:
        """Rank of the peer of the same replica, for every stage that has one; -1 otherwise."""
        count, key = self.options.num_replicas, tuple(sorted(peer_of.items()))
        if key not in self.peers:
            peers = np.full((self.num_stages, count), -1, dtype=np.int64)
            for stage, peer in key:
                peers[stage] = peer * count + np.arange(count)
            self.peers[key] = peers.ravel()
        return self.peers[key]

    def _gather(self, group: list[Placed]) -> None:
        """Parameters of chunks that are used for the first time."""
        fresh = {
            p.stage: p.task.forward[1]
            for p in group
            if p.task.forward is not None and (p.stage, p.task.forward[1]) not in self.gathered
        }
        if not fresh:
            return
        rounds = [fresh]
        if not self.options.overlap_gather:
            chunks = range(self.sequence.parts.shape[1])
            rounds = [dict.fromkeys(fresh, chunk) for chunk in chunks]
        for chunk_of in rounds:
            mask = self._mask(chunk_of)
            parts = self._parts(Work.GATHER, "gather")
            self._put(Run(GATHER, parts, ranks=mask), Row(Work.GATHER, chunk_of=chunk_of))
            self.gathered |= set(chunk_of.items())
        self._put(Wait(PASSES, GATHER, ranks=self._mask(fresh)))

    def _receive(self, group: list[Placed]) -> None:
        """Messages that the passes need; earlier ones of the same sender are taken with them.

        Messages of a sender leave one after another, so taking an earlier one costs nothing.
        """
        rounds: list[dict[int, int]] = []
        for placed in group:
            senders = list(self._senders(placed))
            for number, sender in enumerate(senders):
                if number == len(rounds):
                    rounds.append({})
                rounds[number][placed.stage] = sender
        for peer_of in rounds:
            self._put(Receive(PASSES, self._peers(peer_of)))

    def _senders(self, placed: Placed) -> Iterable[int]:
        for need in placed.needs:
            sender = self.sequence.stage_of[need]
            queue = self.posted[sender, placed.stage]
            while need in queue:
                queue.popleft()
                yield sender

    def _send(self, group: list[Placed], name: str) -> None:
        rounds: list[tuple[str, dict[int, int]]] = []
        for placed in group:
            used: dict[str, int] = {}
            for deed in self._results(placed):
                receiver = self.receivers[deed]
                self.posted.setdefault((placed.stage, receiver), deque()).append(deed)
                stream = UP if receiver == (placed.stage + 1) % self.num_stages else DOWN
                same = [number for number, (other, _) in enumerate(rounds) if other == stream]
                nth = used[stream] = used.get(stream, -1) + 1
                if nth == len(same):
                    same.append(len(rounds))
                    rounds.append((stream, {}))
                rounds[same[nth]][1][placed.stage] = receiver
        for stream, peer_of in rounds:
            self._put(Wait(stream, PASSES, ranks=self._mask(peer_of)))
            parts = self._parts(Work.SEND, f"send {name}")
            self._put(Send(stream, self._peers(peer_of), parts), Row(Work.SEND))

    def _results(self, placed: Placed) -> Iterable[Deed]:
        """What other stages need from a task."""
        return (deed for deed in placed.deeds if deed in self.receivers)

    def _count_weights(self, placed: Placed) -> None:
        """Reduce the gradients of a part when its last holder has finished them."""
        if placed.task.weights is None:
            return
        key = (placed.stage, placed.task.weights[1])
        self.weights_left[key] -= 1
        if self.weights_left[key] or not self.options.overlap_reduce:
            return
        part = int(self.sequence.parts[key])
        holders = self.holders[part]
        if len(holders) == 1:
            self._put(Wait(REDUCE, PASSES, ranks=self._mask(holders)))
            self._reduce(part)
            return
        self._put(Wait(_done(key[1]), PASSES, ranks=self._mask([placed.stage])))
        if not any(self.weights_left[holder] for holder in holders.items()):
            for stage, chunk in holders.items():
                self._put(Wait(REDUCE, _done(chunk), ranks=self._mask([stage])))
            self._reduce(part)

    def _reduce(self, part: int) -> None:
        """Collective of all replicas of all stages that hold a part."""
        holders = self.holders[part]
        mask = self._mask(holders)
        parts = self._parts(Work.REDUCE, "reduce")
        row = Row(Work.REDUCE, chunk_of=holders)
        if mask.sum() == 1:
            self._put(Run(REDUCE, parts, ranks=mask), row)
        else:
            self._put(Meet(REDUCE, np.where(mask, 0, -1), parts), row)


def _done(chunk: int) -> str:
    """Stream that only remembers when a stage had the gradients of a chunk."""
    return f"done {chunk}"


def _name(task: Task, num_chunks: int) -> str:
    """As timelines show it: pass, microbatch, and the chunk where there are several."""

    def told(kind: str, microbatch: int, chunk: int) -> str:
        return f"{kind} {microbatch}" + (f" chunk {chunk}" if num_chunks > 1 else "")

    if task.kind is not Pass.PAIR:
        return told(task.kind, task.microbatch, task.chunk)
    own = told(Pass.FORWARD, task.microbatch, task.chunk)
    return f"{own} | {told(Pass.BACKWARD, task.other_microbatch, task.other_chunk)}"
