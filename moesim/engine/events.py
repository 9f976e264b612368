"""The event interpreter: a simpy process per rank and stream, shared resources, every span recorded.

With :mod:`moesim.engine.agenda` the only importer of simpy. It executes the same programs as
:mod:`moesim.engine.vector` and agrees with it to the picosecond where nothing is shared; it alone executes
programs with first-come-first-served
resources, or whose transfers share links (:mod:`moesim.engine.contention`).

Rules of an instant. Work that needs no grant happens as soon as what it waits for has happened. Resources
decide last: only when nothing else can happen at an instant does every free resource with a queue grant its
first request, in order of arrival, ties by lowest rank, then by program order. A holder of no duration
releases in the same instant; what follows from it settles before the next round of grants.

:class:`Environment`, :class:`Settled` and :class:`Arbiter` are building blocks for other event-driven rooms.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush
from typing import Any, TypeAlias

import numpy as np
from simpy import Environment, Event

from moesim.engine.contention import Contention, LinkUse, Use
from moesim.engine.durations import Durations, Picoseconds
from moesim.engine.links import match_messages
from moesim.engine.program import (
    Demand,
    Meet,
    Program,
    Receive,
    Resource,
    Run,
    Send,
    Wait,
    demand_of,
    participants,
)
from moesim.engine.settled import Settled
from moesim.engine.spans import ABSENT, Recorded

__all__ = ["Arbiter", "Environment", "Event", "EventRun", "Settled", "simulate"]


class Arbiter:
    """First-come-first-served resources of unit capacity, by key; ties go to the lowest rank, then order.

    Requests are granted when an instant has settled, all free resources in one round.
    """

    def __init__(self, env: Environment) -> None:
        self._env = env
        self._queues: dict[Hashable, list[tuple[int, int, int, Event]]] = {}
        self._busy: set[Hashable] = set()
        self._undecided: dict[Hashable, None] = {}

    def request(self, key: Hashable, rank: int, order: int) -> Event:
        """Event that fires when the resource is granted; ``(rank, order)`` breaks ties and is unique."""
        granted = Event(self._env)
        heappush(self._queues.setdefault(key, []), (int(self._env.now), rank, order, granted))
        self._decide_later(key)
        return granted

    def release(self, key: Hashable) -> None:
        """Give the resource back; the next in the queue gets it when this instant has settled."""
        self._busy.remove(key)
        self._decide_later(key)

    def _decide_later(self, key: Hashable) -> None:
        if key in self._busy or not self._queues.get(key):
            return
        if not self._undecided:
            callbacks = Settled(self._env).callbacks
            callbacks.append(self._grant)
        self._undecided[key] = None

    def _grant(self, _: Event) -> None:
        undecided, self._undecided = self._undecided, {}
        for key in undecided:
            self._busy.add(key)
            heappop(self._queues[key])[-1].succeed()


@dataclass(frozen=True, slots=True, eq=False)
class EventRun:
    """Outcome of a simulation.

    Attributes
    ----------
    clocks_ps : ndarray, ``(num_streams, num_ranks)``
        When each stream is through. [ps]
    makespan_ps : int
        Latest of them, those of the background left out. [ps]
    recorded : Recorded
        Start and end of every instruction; one sample. Of the background the last time around.
    link_use : tuple of LinkUse
        One for each capacity array that demands held.
    """

    clocks_ps: Picoseconds
    makespan_ps: int
    recorded: Recorded
    link_use: tuple[LinkUse, ...] = ()


class _Barrier:
    """One event for all members of a group; the last to arrive fires it."""

    __slots__ = ("met", "missing")

    def __init__(self, env: Environment, size: int) -> None:
        self.missing = size
        self.met = Event(env)


_RUN, _MEET, _SEND, _HEAR, _MARK, _SHARED = range(6)


_Step: TypeAlias = tuple[int, int, int, Any]
"""A step of one process: code, where to record it, its duration, and what it needs."""

_Elastic: TypeAlias = dict[int, Callable[[], Event]]
"""Where it is recorded -> what begins work that shares links, and ends it."""

_Lists: TypeAlias = list[list[list[_Step]]]
"""Steps of each process: ``[stream][rank]``."""


def simulate(program: Program, durations: Durations, *, sample: int = 0) -> EventRun:
    """Clocks and recorded starts and ends after executing a program event by event.

    Parameters
    ----------
    program : Program
        What to execute; may share resources.
    durations : Durations
        One row an instruction.
    sample : int, default 0
        Which sample of the durations.

    Raises
    ------
    ValueError
        If the program is not valid or the durations are not its own.
    """
    program.check()
    durations.check_for(program)
    env = Environment()
    arbiter = Arbiter(env)
    size = len(program.instructions) * program.num_ranks
    starts, ends = [ABSENT] * size, [ABSENT] * size
    pools: dict[int, Contention] = {}
    elastic = _elastic(env, program, durations, sample, pools)
    processes = []
    for name, of_stream in zip(program.streams, _steps(env, program, durations, sample), strict=True):
        walk = _walk_on if name in program.background else _walk
        started = [
            env.process(walk(env, arbiter, rank, steps, (starts, ends), elastic))
            for rank, steps in enumerate(of_stream)
            if steps
        ]
        processes += started if walk is _walk else []
    if program.background:
        env.run(until=env.all_of(processes))
    else:
        env.run()
    if any(process.is_alive for process in processes):
        raise RuntimeError("a checked program came to a standstill: defect of the event interpreter")
    shape = (len(program.instructions), 1, program.num_ranks)
    recorded = Recorded(*(np.array(column, dtype=np.int64).reshape(shape) for column in (starts, ends)))
    clocks = np.zeros((len(program.streams), program.num_ranks), dtype=np.int64)
    for instruction, end_ps in zip(program.instructions, recorded.ends_ps[:, 0], strict=True):
        stream = program.streams.index(instruction.stream)
        np.maximum(clocks[stream], end_ps, out=clocks[stream])
    own = [at for at, name in enumerate(program.streams) if name not in program.background]
    return EventRun(
        clocks, int(clocks[own].max()), recorded, tuple(pool.use_so_far() for pool in pools.values())
    )


def _walk_on(
    env: Environment,
    arbiter: Arbiter,
    rank: int,
    steps: list[_Step],
    record: tuple[list[int], list[int]],
    elastic: _Elastic,
) -> Generator[Event, Any, None]:
    """The process of a background stream: its instructions again and again."""
    while any(duration_ps for _, _, duration_ps, _ in steps):
        yield from _walk(env, arbiter, rank, steps, record, elastic)


def _walk(
    env: Environment,
    arbiter: Arbiter,
    rank: int,
    steps: list[_Step],
    record: tuple[list[int], list[int]],
    elastic: _Elastic,
) -> Generator[Event, Any, None]:
    """The process of one stream of one rank: its own instructions, one after another."""
    starts, ends = record
    timeout = env.timeout
    for code, at, duration_ps, extra in steps:
        if code == _MARK:
            extra.succeed()
            continue
        if code == _HEAR:
            if extra is not None:
                yield extra
        elif code == _MEET:
            extra.missing -= 1
            if extra.missing:
                yield extra.met
            else:
                extra.met.succeed()
        elif code == _SHARED:
            yield arbiter.request(extra, rank, at)
        start_ps: int = env.now  # type: ignore[assignment]  # integers go in, so integers come out
        starts[at] = start_ps
        if duration_ps:
            begin = elastic.get(at)
            yield timeout(duration_ps) if begin is None else begin()
        ends[at] = env.now  # type: ignore[assignment]
        if code == _SEND:
            extra.succeed()
        elif code == _SHARED:
            arbiter.release(extra)


def _steps(env: Environment, program: Program, durations: Durations, sample: int) -> _Lists:
    """Each process's own steps, with the events that connect them."""
    num_ranks = program.num_ranks
    lists: _Lists = [[[] for _ in range(num_ranks)] for _ in program.streams]
    source = match_messages(program).source
    sent = {task: Event(env) for task in source.values()}
    for index, instruction in enumerate(program.instructions):
        own = lists[program.streams.index(instruction.stream)]
        ranks = np.flatnonzero(participants(instruction, num_ranks)).tolist()
        lasting = (
            [0] * num_ranks
            if isinstance(instruction, Receive | Wait)
            else _row(durations, index, sample, num_ranks)
        )
        base = index * num_ranks
        match instruction:
            case Run(resource=None):
                _append(own, ranks, _RUN, base, lasting, [None] * num_ranks)
            case Run(resource=Resource() as resource):
                for rank in ranks:
                    unit = int(resource.index[rank])
                    code, key = (_RUN, None) if unit < 0 else (_SHARED, (resource.name, unit))
                    own[rank].append((code, base + rank, lasting[rank], key))
            case Meet(group=group):
                labels, counts = np.unique(group[group >= 0], return_counts=True)
                barriers = {
                    k: _Barrier(env, n) for k, n in zip(labels.tolist(), counts.tolist(), strict=True)
                }
                _append(own, ranks, _MEET, base, lasting, [barriers.get(k) for k in group.tolist()])
            case Send():
                _append(own, ranks, _SEND, base, lasting, [sent.get((index, r)) for r in range(num_ranks)])
            case Receive():
                heard = [sent.get(source.get((index, r), (-1, -1))) for r in range(num_ranks)]
                _append(own, ranks, _HEAR, base, lasting, heard)
            case Wait(on=on):
                awaited = lists[program.streams.index(on)]
                for rank in ranks:
                    own[rank].append((_HEAR, base + rank, 0, _mark(env, awaited[rank])))
    return lists


def _elastic(
    env: Environment, program: Program, durations: Durations, sample: int, pools: dict[int, Contention]
) -> _Elastic:
    """What begins the work of every instruction that shares links, by where its times are recorded."""
    found: _Elastic = {}
    for index, instruction in enumerate(program.instructions):
        demand: Demand | None = demand_of(instruction)
        if demand is None:
            continue
        pool = pools.setdefault(id(demand.capacity), Contention(env, demand.capacity))
        lasting = _row(durations, index, sample, program.num_ranks)
        ranks = np.flatnonzero(participants(instruction, program.num_ranks))
        # members of a collective move as one; all others on their own
        labels = instruction.group[ranks] if isinstance(instruction, Meet) else ranks
        for label in np.unique(labels):
            members = ranks[labels == label]
            use = Use.of(demand.links[members], demand.rate[members])
            if use.links:
                durations_ps = {r: lasting[r] for r in members.tolist() if lasting[r]}
                transfer = _Transfer(pool, use, durations_ps, instruction.stream in program.background)
                for rank in transfer.lasting:
                    found[index * program.num_ranks + rank] = partial(transfer.begin, rank)
    return found


@dataclass(slots=True, eq=False)
class _Transfer:
    """A transfer that its first member starts; each gets the event of its own end."""

    pool: Contention
    use: Use
    lasting: dict[int, int]
    is_background: bool
    ends: dict[int, Event] = field(default_factory=dict)

    def begin(self, rank: int) -> Event:
        # a background transfer has one member, who begins it anew each time around
        if not self.ends or self.is_background:
            events = self.pool.start(self.use, list(self.lasting.values()), is_background=self.is_background)
            self.ends = dict(zip(self.lasting, events, strict=True))
        return self.ends[rank]


def _append(
    own: list[list[_Step]], ranks: list[int], code: int, base: int, lasting: list[int], extras: list[Any]
) -> None:
    for rank in ranks:
        own[rank].append((code, base + rank, lasting[rank], extras[rank]))


def _mark(env: Environment, steps: list[_Step]) -> Event | None:
    """Event that fires when a process has done all its steps so far; None if there are none."""
    if not steps:
        return None
    if steps[-1][0] != _MARK:
        steps.append((_MARK, 0, 0, Event(env)))
    mark: Event = steps[-1][3]
    return mark


def _row(durations: Durations, index: int, sample: int, num_ranks: int) -> list[int]:
    row = durations.rows[index]
    values: list[int] = row[sample if len(row) > 1 else 0].tolist()
    return values if len(values) > 1 else values * num_ranks
