"""The vector interpreter: one or a few numpy operations an instruction, all samples and ranks at once.

A program is compiled once into micro-operations on views of one clock array ``(stream, sample, rank)``; the
same compiled program then runs with any durations. Exact, and the right tool, wherever no resource is shared;
a program that shares one is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np

from moesim.engine.durations import Durations, Picoseconds
from moesim.engine.groups import AnyGroups, Select, any_groups, as_select, mesh_of
from moesim.engine.links import match_messages
from moesim.engine.program import (
    Instruction,
    Meet,
    Program,
    RankIndex,
    RankMask,
    Receive,
    Run,
    Send,
    Wait,
    demand_of,
    participants,
)
from moesim.engine.spans import ABSENT, Recorded

ALL = slice(None)


class Code(IntEnum):
    """What a micro-operation does to the clocks of its stream."""

    ADD = 0  # all ranks or a slice of them
    ADD_MASKED = 1
    MEET_ALL = 2  # one group of all ranks
    MEET_MESH = 3  # equal groups along one axis of a mesh: a reshape
    MEET_ANY = 4  # any groups: permutation and reduceat
    WAIT = 5
    WAIT_MASKED = 6
    SAVE = 7  # copy to a message slot
    TAKE = 8  # maximum with a message slot


class Op(NamedTuple):
    """A micro-operation: code, view of the stream it changes, instruction, and what else it needs."""

    code: Code
    view: int
    instruction: int
    extra: Any = None


class ViewKey(NamedTuple):
    """A view of the clocks: stream, ranks, and the mesh ``(outer, members, inner)`` they are shaped as."""

    stream: int
    start: int
    stop: int
    step: int
    mesh: tuple[int, int, int] | None = None


class _GroupShape(NamedTuple):
    """Groups as a mesh over a slice of the ranks, or of no regular shape."""

    ranks: slice
    mesh: tuple[int, int, int] | None
    groups: AnyGroups | None


class Take(NamedTuple):
    """Message slot and the ranks that read it, ``clock[receivers] = max(., slot[senders])``."""

    slot: int
    receivers: Select
    senders: Select


@dataclass(frozen=True, slots=True, eq=False)
class Compiled:
    """A program as micro-operations; holds no durations.

    Attributes
    ----------
    program : Program
        What was compiled.
    ops : tuple of Op
        In order.
    views : tuple of ViewKey
        Views of the clock array that the operations name by position.
    num_slots : int
        Messages in flight at once, at most.
    """

    program: Program
    ops: tuple[Op, ...]
    views: tuple[ViewKey, ...]
    num_slots: int


@dataclass(frozen=True, slots=True, eq=False)
class VectorRun:
    """Outcome of a run.

    Attributes
    ----------
    clocks_ps : ndarray, ``(num_streams, num_samples, num_ranks)``
        When each stream is through. [ps]
    makespan_ps : ndarray, ``(num_samples,)``
        Latest of them. [ps]
    recorded : Recorded or None
        Start and end of every instruction, if asked for.
    """

    clocks_ps: Picoseconds
    makespan_ps: Picoseconds
    recorded: Recorded | None


def compile(program: Program) -> Compiled:  # noqa: A001 - what it does; used as vector.compile
    """Micro-operations of a program.

    Raises
    ------
    ValueError
        If the program is not valid, or shares a resource or links: then only
        :func:`moesim.engine.events.simulate` can execute it.
    """
    program.check()
    shared = sorted({i.resource.name for i in program.instructions if isinstance(i, Run) and i.resource})
    shares_links = bool(program.background) or any(demand_of(i) is not None for i in program.instructions)
    shared += ["links"] if shares_links else []
    if shared:
        msg = (
            f"the program shares {', '.join(shared)}; the vector interpreter accepts no shared resources: "
            "use the event interpreter"
        )
        raise ValueError(msg)
    compiler = _Compiler(program)
    for index in range(len(program.instructions)):
        compiler.add(index)
    return Compiled(program, tuple(compiler.ops), tuple(compiler.views), compiler.num_slots)


class _Compiler:
    """Builds the operations in program order; interns views and reuses message slots."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.ops: list[Op] = []
        self.views: dict[ViewKey, int] = {}
        self.num_slots = 0
        self._source = match_messages(program).source
        self._unread: dict[int, int] = {}
        for send, _ in self._source.values():
            self._unread[send] = self._unread.get(send, 0) + 1
        self._slot_of_send: dict[int, int] = {}
        self._free: list[int] = []
        # layers share groups and masks, microbatches whole instructions: each is worked out once
        self._shapes: dict[int, _GroupShape] = {}
        self._sending: dict[int, RankMask] = {}
        self._selects: dict[int, Select] = {}
        self._known: dict[int, Op] = {}

    def add(self, index: int) -> None:
        instruction = self.program.instructions[index]
        known = self._known.get(id(instruction))
        if known is not None:
            self.ops.append(Op(known.code, known.view, index, known.extra))
            return
        self._add(index, instruction)
        if not isinstance(instruction, Send | Receive):
            self._known[id(instruction)] = self.ops[-1]

    def _add(self, index: int, instruction: Instruction) -> None:
        stream = self.program.streams.index(instruction.stream)
        match instruction:
            case Run(ranks=ranks):
                self._masked(Code.ADD, stream, index, ranks)
            case Meet(group=group):
                self._meet(stream, index, group)
            case Send(to=to):
                self._masked(Code.ADD, stream, index, self._senders(to))
                slot = self._free.pop() if self._free else self.num_slots
                self.num_slots = max(self.num_slots, slot + 1)
                self._slot_of_send[index] = slot
                self.ops.append(Op(Code.SAVE, self._view(stream, ALL), index, slot))
            case Receive(sender=sender):
                self._receive(stream, index, sender)
            case Wait(on=on, ranks=ranks):
                self._masked(Code.WAIT, stream, index, ranks, self.program.streams.index(on))

    def _view(self, stream: int, ranks: slice, mesh: tuple[int, int, int] | None = None) -> int:
        start, stop, step = ranks.indices(self.program.num_ranks)
        return self.views.setdefault(ViewKey(stream, start, stop, step, mesh), len(self.views))

    def _masked(
        self, code: Code, stream: int, index: int, mask: RankMask | None, on: int | None = None
    ) -> None:
        ranks = ALL if mask is None else self._select(mask)
        extra: Any
        if isinstance(ranks, slice):
            extra = ranks if on is None else self._view(on, ranks)
            self.ops.append(Op(code, self._view(stream, ranks), index, extra))
        else:
            extra = mask if on is None else (self._view(on, ALL), mask)
            self.ops.append(Op(Code(code + 1), self._view(stream, ALL), index, extra))

    def _senders(self, to: RankIndex) -> RankMask:
        if id(to) not in self._sending:
            self._sending[id(to)] = to >= 0
        return self._sending[id(to)]

    def _select(self, mask: RankMask) -> Select:
        if id(mask) not in self._selects:
            self._selects[id(mask)] = as_select(np.flatnonzero(mask))
        return self._selects[id(mask)]

    def _meet(self, stream: int, index: int, group: RankIndex) -> None:
        ranks, mesh, groups = self._shapes.get(id(group)) or self._shape_of(group)
        if mesh == (1, self.program.num_ranks, 1):
            self.ops.append(Op(Code.MEET_ALL, self._view(stream, ALL), index))
        elif groups is None:
            self.ops.append(Op(Code.MEET_MESH, self._view(stream, ranks, mesh), index, (ranks, mesh)))
        else:
            self.ops.append(Op(Code.MEET_ANY, self._view(stream, ALL), index, groups))

    def _shape_of(self, group: RankIndex) -> _GroupShape:
        """Mesh of the groups where they form one."""
        ranks = as_select(np.flatnonzero(group >= 0))
        mesh = mesh_of(group[ranks]) if isinstance(ranks, slice) else None
        if isinstance(ranks, slice) and mesh is not None:
            shape = _GroupShape(ranks, mesh, None)
        else:
            shape = _GroupShape(ALL, None, any_groups(group))
        self._shapes[id(group)] = shape
        return shape

    def _receive(self, stream: int, index: int, sender: RankIndex) -> None:
        pairs: dict[int, list[tuple[int, int]]] = {}
        for rank in np.flatnonzero(sender >= 0).tolist():
            send, source_rank = self._source[index, rank]
            pairs.setdefault(send, []).append((rank, source_rank))
        for send, ranks in pairs.items():
            receivers, senders = (np.array(column, dtype=np.int64) for column in zip(*ranks, strict=True))
            take = Take(self._slot_of_send[send], as_select(receivers), as_select(senders))
            self.ops.append(Op(Code.TAKE, self._view(stream, ALL), index, take))
            self._unread[send] -= len(ranks)
            if self._unread[send] == 0:
                self._free.append(self._slot_of_send[send])


class _Workspace:
    """Clock array of one run and the views and buffers that its operations write into."""

    def __init__(self, compiled: Compiled, num_samples: int) -> None:
        num_ranks = compiled.program.num_ranks
        self.clocks = np.zeros((len(compiled.program.streams), num_samples, num_ranks), dtype=np.int64)
        self.slots = np.empty((compiled.num_slots, num_samples, num_ranks), dtype=np.int64)
        self.latest = np.empty((num_samples, 1), dtype=np.int64)
        self.views: list[Picoseconds] = []
        for key in compiled.views:
            view = self.clocks[key.stream][:, key.start : key.stop : key.step]
            self.views.append(view if key.mesh is None else view.reshape(num_samples, *key.mesh))


def run(compiled: Compiled, durations: Durations, *, record: bool = False) -> VectorRun:
    """Clocks after executing a compiled program with the given durations.

    Parameters
    ----------
    compiled : Compiled
        What :func:`compile` returned.
    durations : Durations
        One row an instruction; rows of ``Wait`` and ``Receive`` are not looked at.
    record : bool, default False
        Keep the start and end of every instruction: 16 bytes an instruction, sample and rank.

    Raises
    ------
    ValueError
        If the number of rows is not the number of instructions, or a row has another number of ranks.
    """
    program = compiled.program
    durations.check_for(program)
    space = _Workspace(compiled, durations.num_samples)
    recorded = None
    if record:
        recorded = _execute_recorded(compiled, durations, space)
    else:
        _execute(compiled.ops, durations.rows, space)
    latest = space.clocks.max(axis=(0, 2)) if space.clocks.size else np.zeros(durations.num_samples, np.int64)
    return VectorRun(space.clocks, latest, recorded)


def _execute(ops: Sequence[Op], rows: Sequence[Picoseconds], space: _Workspace) -> None:
    """Hot loop: every branch writes in place; codes in the order of their frequency."""
    add, maximum, reduce_max = np.add, np.maximum, np.maximum.reduce
    code_add, code_wait, code_meet_all, code_meet_mesh = Code.ADD, Code.WAIT, Code.MEET_ALL, Code.MEET_MESH
    views, latest = space.views, space.latest
    for code, view, index, extra in ops:
        clock = views[view]
        if code is code_add:
            row = rows[index]
            add(clock, row if row.shape[1] == 1 else row[:, extra], out=clock)
        elif code is code_wait:
            maximum(clock, views[extra], out=clock)
        elif code is code_meet_all:
            reduce_max(clock, axis=1, out=latest, keepdims=True)
            add(latest, rows[index], out=clock)
        elif code is code_meet_mesh:
            start = reduce_max(clock, axis=2, keepdims=True)
            add(start, _on_mesh(rows[index], *extra), out=clock)
        elif code is Code.MEET_ANY:
            start = maximum.reduceat(clock[:, extra.members], extra.starts, axis=1)[:, extra.group_of_rank]
            add(start, rows[index], out=clock, where=True if extra.mask is None else extra.mask)
        elif code is Code.SAVE:
            space.slots[extra][...] = clock
        elif code is Code.TAKE:
            message = space.slots[extra.slot][:, extra.senders]
            clock[:, extra.receivers] = maximum(clock[:, extra.receivers], message)
        elif code is Code.ADD_MASKED:
            add(clock, rows[index], out=clock, where=extra)
        else:
            maximum(clock, views[extra[0]], out=clock, where=extra[1])


def _on_mesh(row: Picoseconds, ranks: slice, mesh: tuple[int, int, int]) -> Picoseconds:
    if row.shape[1] == 1:
        return row[:, :, np.newaxis, np.newaxis]
    return row[:, ranks].reshape(len(row), *mesh)


def _execute_recorded(compiled: Compiled, durations: Durations, space: _Workspace) -> Recorded:
    """As :func:`_execute`, keeping the clock of the stream after every instruction."""
    program, rows = compiled.program, durations.rows
    shape = (len(rows), durations.num_samples, program.num_ranks)
    starts, ends = (np.full(shape, ABSENT, dtype=np.int64) for _ in range(2))
    ops_of: list[list[Op]] = [[] for _ in rows]
    for op in compiled.ops:
        ops_of[op.instruction].append(op)
    for index, instruction in enumerate(program.instructions):
        _execute(ops_of[index], rows, space)
        mask = participants(instruction, program.num_ranks)
        np.copyto(ends[index], space.clocks[program.streams.index(instruction.stream)], where=mask)
        takes_no_time = isinstance(instruction, Receive | Wait)
        np.subtract(ends[index], 0 if takes_no_time else rows[index], out=starts[index], where=mask)
    return Recorded(starts, ends)
