"""A stream program: what an engine launches, in order, on named streams of many ranks.

The vocabulary is that of a real launch queue: work on a stream, collectives, messages between two ranks and
event dependencies between streams. A program says nothing about what the work is; it knows durations and the
evidence for them. Interpreters live in :mod:`moesim.engine.vector` and :mod:`moesim.engine.events`.

Semantics. ``clock[stream, rank]`` starts at 0 and instructions act in program order:

=========== ======================================================================================
``Run``     ``clock += seconds`` on the ranks that take part
``Meet``    ``clock = max(clock over the group) + seconds`` for every member of every group
``Send``    ``clock += seconds``; the message is available to its receiver at the new ``clock``
``Receive`` ``clock = max(clock, time the message became available)``
``Wait``    ``clock[stream] = max(clock[stream], clock[on])``, on the same rank
=========== ======================================================================================

The k-th ``Receive`` of an ordered pair of ranks takes the k-th ``Send`` of that pair, in program order.
Program order is therefore a topological order of all dependencies, and a checked program cannot deadlock.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from moesim.evidence import Estimate

RankMask: TypeAlias = NDArray[np.bool_]
RankIndex: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One operation inside an instruction.

    Attributes
    ----------
    name : str
        What it is, as reports show it (``experts_gate_up``).
    kind : str
        Category for breakdowns (``compute``, ``all_to_all``, ``copy``...).
    estimate : Estimate
        Its duration: ``seconds`` is a scalar or ``(num_ranks,)``. [s]
    """

    name: str
    kind: str
    estimate: Estimate


@dataclass(frozen=True, slots=True, eq=False)
class Resource:
    """Shared first-come-first-served things of unit capacity, and which of them each rank uses.

    Attributes
    ----------
    name : str
        What is shared (``pcie_h2d``, ``host_dram``, ``ssd``).
    index : ndarray, ``(num_ranks,)``
        Which one of them the rank uses; -1: none, the rank runs unhindered.
    """

    name: str
    index: RankIndex


@dataclass(frozen=True, slots=True, eq=False)
class Demand:
    """Links that an instruction's ranks use while it lasts, shared max-min fairly with all others on them.

    The instruction's seconds are those without anybody else; crowded links make it last longer. The group of
    a :class:`Meet` is one transfer over the links of all its members. Only the event interpreter accepts
    demands.

    Attributes
    ----------
    capacity : ndarray, ``(link,)``
        Of each link, above 0; demands that meet on the links hold the same array. [bytes/s]
    links : ndarray of int, ``(num_ranks, most)``
        Links that each rank's transfer crosses, -1 to fill up.
    rate : ndarray, ``(num_ranks,)`` or ``(num_ranks, most)``
        What each uses at full speed of every such link, or of each of them; above 0 where there is a link.
        [bytes/s]
    """

    capacity: NDArray[np.float64]
    links: NDArray[np.int64]
    rate: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """Work local to each rank, in order on its stream; ``ranks=None`` means all of them.

    With a ``resource`` the work starts when the stream has reached it and the resource is granted, in order
    of arrival, ties by lowest rank; only the event interpreter accepts that.
    """

    stream: str
    parts: Sequence[Part]
    layer: int | None = None
    resource: Resource | None = None
    ranks: RankMask | None = None
    demand: Demand | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Meet:
    """A collective: a group starts when its last member arrives, each member leaves after its own seconds.

    ``group[rank]`` is any non-negative label, equal for those who meet; -1: does not take part.
    """

    stream: str
    group: RankIndex
    parts: Sequence[Part]
    layer: int | None = None
    demand: Demand | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Send:
    """A message from every rank with ``to[rank] >= 0`` to that rank; the sender's stream is busy with it."""

    stream: str
    to: RankIndex
    parts: Sequence[Part]
    layer: int | None = None
    demand: Demand | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Receive:
    """The stream of every rank with ``sender[rank] >= 0`` waits for the next message of that rank."""

    stream: str
    sender: RankIndex
    layer: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Wait:
    """Later work of ``stream`` starts no earlier than all work issued so far on ``on`` of the same rank."""

    stream: str
    on: str
    ranks: RankMask | None = None
    layer: int | None = None


Instruction: TypeAlias = Run | Meet | Send | Receive | Wait


def parts_of(instruction: Instruction) -> Sequence[Part]:
    """Operations of an instruction; empty for those that take no time."""
    return () if isinstance(instruction, Receive | Wait) else instruction.parts


def demand_of(instruction: Instruction) -> Demand | None:
    """Links that an instruction uses, if it says so."""
    return None if isinstance(instruction, Receive | Wait) else instruction.demand


def participants(instruction: Instruction, num_ranks: int) -> RankMask:
    """Ranks that take part in ``instruction``, ``(num_ranks,)``."""
    if isinstance(instruction, Meet):
        return instruction.group >= 0
    if isinstance(instruction, Send):
        return instruction.to >= 0
    if isinstance(instruction, Receive):
        return instruction.sender >= 0
    return np.ones(num_ranks, dtype=np.bool_) if instruction.ranks is None else instruction.ranks


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """An ordered list of instructions over ranks and named streams.

    Attributes
    ----------
    num_ranks : int
        Ranks that execute it.
    streams : tuple of str
        Names of the streams that every rank has.
    instructions : tuple of Run, Meet, Send, Receive or Wait
        In the order in which a host would issue them.
    background : tuple of str
        Streams of runs that begin anew whenever they are through, for as long as the other streams last:
        traffic of others on the same links. Only the event interpreter accepts them.
    """

    num_ranks: int
    streams: tuple[str, ...]
    instructions: tuple[Instruction, ...]
    background: tuple[str, ...] = ()

    def check(self) -> Program:
        """This program, after validation.

        Raises
        ------
        ValueError
            If anything is wrong, with all problems, one a line (see :func:`moesim.engine.check.problems_of`).
        """
        from moesim.engine.check import problems_of  # noqa: PLC0415 - it needs the classes of this module

        problems = problems_of(self)
        if problems:
            count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
            raise ValueError("\n  ".join([f"program: {count}", *problems]))
        return self

    def families(self) -> tuple[str, ...]:
        """Operation families whose errors matter to this program, sorted."""
        return tuple(sorted({p.estimate.family for i in self.instructions for p in parts_of(i)}))

    def repeated(self, times: int) -> Program:
        """The program executed ``times`` in a row (streams are not joined in between)."""
        return replace(self, instructions=self.instructions * times)

    def fused(self, *, across_layers: bool = False) -> Program:
        """The same clocks from fewer instructions: neighbouring runs of a stream become one.

        Two runs are merged when they are on one stream, have the same ranks and neither resource nor
        demand, and nothing between them touches or waits for that stream on any of those ranks. The merged
        run stands where the first stood and holds the parts of both.

        Parameters
        ----------
        across_layers : bool, default False
            Merge runs of different layers too; the merged run then carries no layer.
        """
        fused: list[Instruction] = []
        mergeable: dict[str, list[int]] = {stream: [] for stream in self.streams}
        for instruction in self.instructions:
            mask = participants(instruction, self.num_ranks)
            partner = None
            if isinstance(instruction, Run) and _is_plain(instruction):
                partner = _merge_partner(
                    instruction, mask, fused, mergeable[instruction.stream], across_layers
                )
            if partner is not None:
                fused[partner] = _merged(fused[partner], instruction)
                continue
            touched = {instruction.stream} | ({instruction.on} if isinstance(instruction, Wait) else set())
            for stream in touched:
                mergeable[stream] = [
                    at
                    for at in mergeable[stream]
                    if not (participants(fused[at], self.num_ranks) & mask).any()
                ]
            if isinstance(instruction, Run) and _is_plain(instruction):
                mergeable[instruction.stream].append(len(fused))
            fused.append(instruction)
        return replace(self, instructions=tuple(fused))


def _is_plain(run: Run) -> bool:
    return run.resource is None and run.demand is None


def _merge_partner(
    run: Run, mask: RankMask, fused: Sequence[Instruction], candidates: Iterable[int], across_layers: bool
) -> int | None:
    for at in candidates:
        other = fused[at]
        same_layer = across_layers or other.layer == run.layer
        if same_layer and np.array_equal(participants(other, len(mask)), mask):
            return at
    return None


def _merged(first: Instruction, second: Instruction) -> Run:
    if not (isinstance(first, Run) and isinstance(second, Run)):
        raise TypeError("only runs are merged")
    layer = first.layer if first.layer == second.layer else None
    return replace(first, parts=(*first.parts, *second.parts), layer=layer)


def concatenated(programs: Sequence[Program]) -> Program:
    """The programs one after another, over the union of their streams.

    Raises
    ------
    ValueError
        If there is none, or they differ in the number of ranks.
    """
    if len({p.num_ranks for p in programs}) != 1:
        msg = f"accepted: one or more programs of equal num_ranks; got {[p.num_ranks for p in programs]}"
        raise ValueError(msg)
    streams = tuple(dict.fromkeys(name for p in programs for name in p.streams))
    return Program(programs[0].num_ranks, streams, tuple(i for p in programs for i in p.instructions))
