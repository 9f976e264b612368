"""Passes of a chunk as stream programs over one expert-parallel group, and what they last."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from moesim.engine import vector
from moesim.engine.critical_path import critical_path
from moesim.engine.durations import durations_ps, to_seconds
from moesim.engine.program import Instruction, Meet, Part, Program, Run, Wait
from moesim.evidence import Estimate, Grade
from moesim.metrics.breakdown import Share, path_breakdown
from moesim.steps.block import COMM, COMPUTE
from moesim.training.items import Item, Link, Overlapped, Piece, Work
from moesim.training.overlapped import num_launches
from moesim.training.recompute import Recompute
from moesim.training.schedules.base import Pass
from moesim.training.work import LayerWork

HOST = "host"
STREAMS = (COMPUTE, COMM, HOST)
HOST_FAMILY = "host"
EXCHANGE_TAG = "dispatch"

Errors = Mapping[str, NDArray[np.float64]]
Segments = Sequence[Sequence[Item]]
"""Items of a chunk, a layer each; embedding and head are segments of their own."""


@dataclass(frozen=True, slots=True)
class Host:
    """What launching work costs the host.

    Attributes
    ----------
    launch_s : float
        Host time of one kernel of the forward pass. [s]
    backward_ratio : float
        Kernels of a backward pass over those of its forward. [-]
    sigma : float
        Of their error. [-]
    grade : str
        Evidence for them.
    """

    launch_s: float
    backward_ratio: float = 2.0
    sigma: float = 0.3
    grade: Grade = "assumed"


@dataclass(frozen=True, slots=True)
class Block:
    """Local work, an exchange that needs it, and work that runs beside the exchange.

    ``layer`` are instructions of an overlapped expert layer that follows instead of an exchange; with
    ``host_waits`` the host launches nothing more until all of that is done.
    """

    work: tuple[Part, ...]
    launches: float
    link: Link | None = None
    moved: Part | None = None
    beside: tuple[Part, ...] = ()
    layer: tuple[Instruction, ...] = ()
    host_waits: bool = False


def forward_blocks(items: Iterable[Item]) -> list[Block]:
    """Blocks of a forward pass down the items."""
    blocks: list[Block] = []
    work: list[Part] = []
    launches = 0.0
    for item in items:
        if isinstance(item, Link):
            blocks.append(Block(tuple(work), launches, item, item.forward))
            work, launches = [], 0.0
        elif isinstance(item, Overlapped):
            blocks.append(Block(tuple(work), launches, host_waits=item.host_waits))
            blocks.append(Block((), num_launches(item.forward), layer=item.forward))
            work, launches = [], 0.0
        else:
            work += _merged((w.label, w.passes.forward) for w in item.work)
            launches += _launches(item)
    return [*blocks, Block(tuple(work), launches)] if work or launches else blocks


def backward_blocks(
    items: Sequence[Item], kind: Pass, reruns: Callable[[str], bool], host: Host
) -> list[Block]:
    """Blocks of a backward pass up the items: gradients of the input, of the weights, or both.

    Work that is run again stands before the gradients that need it; where an exchange is run again, all that
    is run again goes down the items first.
    """
    with_input, with_weight = kind is not Pass.WEIGHT_GRADIENT, kind is not Pass.INPUT_GRADIENT
    replays = any(_exchanges_again(item, reruns) for item in items)
    blocks = _replayed(items, reruns) if with_input and replays else []
    work: list[Part] = []
    pending: list[Part] = []
    launches = 0.0
    for item in reversed(items):
        if isinstance(item, Piece):
            if with_input:
                again = [] if replays else [_rerun(w, reruns) for w in item.work]
                work += [p for p in again if p is not None]
                work += _merged((w.label, w.passes.input_gradient) for w in item.work)
            if with_weight:
                pending += _merged((w.label, w.passes.weight_gradient) for w in item.work)
            share = 0.5 if kind in (Pass.INPUT_GRADIENT, Pass.WEIGHT_GRADIENT) else 1.0
            launches += _launches(item) * host.backward_ratio * share
        elif isinstance(item, Overlapped):
            if not with_input:
                pending += item.weight_gradient
                continue
            if item.activation is not None and not replays and reruns("expert_activation"):
                work.append(Part("recompute", "compute", item.activation))
            layer = item.backward if with_weight else item.input_gradient
            launches += num_launches(layer) * host.backward_ratio
            blocks.append(Block((*work, *pending), launches, layer=layer, host_waits=item.host_waits))
            work, pending, launches = [], [], 0.0
        elif with_input:
            beside = tuple(pending) if item.hides_weight_gradient else ()
            own = work if beside else work + pending
            blocks.append(Block(tuple(own), launches, item, item.backward, beside))
            work, pending, launches = [], [], 0.0
    last = (*work, *pending)
    return [*blocks, Block(last, launches)] if last or launches else blocks


def _exchanges_again(item: Item, reruns: Callable[[str], bool]) -> bool:
    if isinstance(item, Overlapped):
        return reruns(EXCHANGE_TAG)
    return isinstance(item, Link) and reruns(item.tag)


def _replayed(items: Sequence[Item], reruns: Callable[[str], bool]) -> list[Block]:
    """Forward blocks of what is run again, called recomputation."""
    kept: list[Item] = []
    for item in items:
        if not isinstance(item, Piece):
            kept += [item] if _exchanges_again(item, reruns) else []
            continue
        work = tuple(w for w in item.work if reruns(w.tag))
        if work:
            kept.append(replace(item, work=work))
    return [
        replace(block, work=tuple(Part("recompute", "compute", p.estimate) for p in block.work))
        for block in forward_blocks(kept)
    ]


def _rerun(work: Work, reruns: Callable[[str], bool]) -> Part | None:
    if reruns(work.tag):
        return Part("recompute", "compute", work.passes.forward)
    if work.activation is not None and reruns("expert_activation"):
        return Part("recompute", "compute", work.activation)
    return None


def _merged(named: Iterable[tuple[str, Estimate | None]]) -> list[Part]:
    """Parts summed by what they are called and what their errors depend on."""
    sums: dict[tuple[str, str, float, str], Estimate] = {}
    for label, estimate in named:
        if estimate is None:
            continue
        key = (label, estimate.family, estimate.sigma, estimate.grade)
        before = sums.get(key)
        sums[key] = estimate if before is None else replace(before, seconds=before.seconds + estimate.seconds)
    return [Part(key[0], "compute", estimate) for key, estimate in sums.items()]


def _scaled(part: Part, ratio: NDArray[np.float64]) -> Part:
    return replace(part, estimate=replace(part.estimate, seconds=part.estimate.seconds * ratio))


def _launches(piece: Piece) -> float:
    """Kernels that the host launches; a captured piece is one."""
    return 1.0 if piece.captured else len(piece.work) + piece.extra_launches


class ChunkTimes:
    """Durations of the passes of any run of a model's layers."""

    def __init__(self, work: LayerWork, recompute: Recompute, host: Host) -> None:
        self.work, self.recompute, self.host = work, recompute, host
        size = max(work.plan.ep, 1)
        self.num_ranks = work.num_draws * size
        self._group = np.repeat(np.arange(work.num_draws), size)
        self._known: dict[Program, vector.Compiled] = {}
        self._lent_fraction = min(work.fabric.communication.sms / work.num_units, 1.0)

    def segments(self, layers: Sequence[int], *, first: bool, last: bool, mtp: bool = False) -> Segments:
        """Items of a chunk: ``layers``, with the embedding before and the head behind where it has them."""
        work = self.work
        segments = [list(work.embedding())] if first else []
        segments += [work.layer(layer) for layer in layers]
        if last:
            segments += [work.head()]
            segments += [work.mtp()] if mtp else []
        return segments

    def program(self, segments: Segments, kind: Pass, other: Segments = ()) -> Program:
        """Program of one pass; a pair has ``segments`` forward beside ``other`` backward."""
        if kind is Pass.PAIR:
            instructions = self._woven(self._forward(segments), self._backward(other, Pass.BACKWARD))
            return Program(self.num_ranks, STREAMS, tuple(instructions))
        forward = kind is Pass.FORWARD
        instructions = []
        for block in self._forward(segments) if forward else self._backward(segments, kind):
            instructions += self._work(block)
            if block.link is not None:
                instructions += self._moved(block)
                instructions += self._joined(block)
            instructions += self._layer(block)
        return Program(self.num_ranks, STREAMS, tuple(instructions))

    def _forward(self, segments: Segments) -> list[Block]:
        return forward_blocks(item for segment in segments for item in segment)

    def _backward(self, segments: Segments, kind: Pass) -> list[Block]:
        """Blocks up the segments; what a layer runs again depends on its place among the chunk's layers."""
        blocks: list[Block] = []
        for position in reversed(range(len(segments))):
            reruns = self.recompute.at(position)
            blocks += backward_blocks(segments[position], kind, reruns, self.host)
        return blocks

    def seconds(self, program: Program, errors: Errors | None = None) -> NDArray[np.float64]:
        """Duration of a pass, ``(sample, draw)``: until the slowest member is through. [s]"""
        run = vector.run(self._compiled(program), durations_ps(program, errors))
        ends = run.clocks_ps.max(axis=0)
        return to_seconds(ends.reshape(len(ends), self.work.num_draws, -1).max(axis=-1))

    def shares(self, program: Program) -> list[Share]:
        """Seconds of a pass by operation along its critical path, scaled to the mean over draws."""
        run = vector.run(self._compiled(program), durations_ps(program), record=True)
        assert run.recorded is not None  # asked for
        shares = path_breakdown(program, critical_path(program, run.recorded))
        total = sum(share.seconds for share in shares)
        scale = float(self.seconds(program).mean()) / total if total else 0.0
        return [replace(share, seconds=share.seconds * scale) for share in shares]

    def slowed(self, program: Program, speed: NDArray[np.float64]) -> Program:
        """The same pass where members of the group compute at a fraction of their rate, ``(member,)``."""
        ratio = 1.0 / np.tile(speed, self.work.num_draws)
        instructions = [
            replace(i, parts=tuple(_scaled(part, ratio) for part in i.parts))
            if isinstance(i, Run | Meet) and i.stream == COMPUTE
            else i
            for i in program.instructions
        ]
        return replace(program, instructions=tuple(instructions))

    def _compiled(self, program: Program) -> vector.Compiled:
        if program not in self._known:
            self._known[program] = vector.compile(program)
        return self._known[program]

    def _woven(self, forward: Sequence[Block], backward: Sequence[Block]) -> list[Instruction]:
        """Two passes in turn: while one's tokens travel, the other computes."""
        instructions: list[Instruction] = []
        for pair in zip_longest(forward, backward):
            for block in pair:
                if block is None:
                    continue
                instructions += self._work(block)
                # the other pass's exchange is over before that pass computes again: wait, then issue
                instructions.append(Wait(COMPUTE, on=COMM))
                if block.link is not None:
                    instructions += self._moved(block, hidden=True)
        return [*instructions, Wait(COMPUTE, on=COMM)]

    def _work(self, block: Block) -> list[Instruction]:
        launches: list[Instruction] = []
        if block.launches and self.host.launch_s:
            cost = Estimate(
                block.launches * self.host.launch_s, HOST_FAMILY, self.host.grade, self.host.sigma
            )
            launches = [Run(HOST, (Part("host launches", "cpu_compute", cost),)), Wait(COMPUTE, on=HOST)]
        return [*launches, Run(COMPUTE, block.work)] if block.work else launches

    def _moved(self, block: Block, *, hidden: bool = False) -> list[Instruction]:
        """The exchange of a block and the work beside it, which misses the units that the exchange uses."""
        assert block.link is not None
        assert block.moved is not None
        exchange = (
            Meet(COMM, self._group, (block.moved,)) if block.link.everybody else Run(COMM, (block.moved,))
        )
        moved: list[Instruction] = [Wait(COMM, on=COMPUTE), exchange]
        if not (block.beside or hidden):
            return moved
        estimate = block.moved.estimate
        lent = replace(estimate, seconds=estimate.seconds * self._lent_fraction)
        return [*moved, Run(COMPUTE, (*block.beside, Part("units lent to exchanges", "compute", lent)))]

    @staticmethod
    def _layer(block: Block) -> list[Instruction]:
        read: list[Instruction] = [Wait(HOST, on=COMPUTE)] if block.host_waits else []
        return [*block.layer, *read]

    def _joined(self, block: Block) -> list[Instruction]:
        assert block.link is not None
        read: list[Instruction] = [Wait(HOST, on=COMM)] if block.link.host_waits else []
        return [Wait(COMPUTE, on=COMM), *read]
