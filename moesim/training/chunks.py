"""Passes of a chunk as stream programs over one expert-parallel group, and what they last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from moesim.engine import vector
from moesim.engine.critical_path import critical_path
from moesim.engine.durations import durations_ps, to_seconds
from moesim.engine.program import Instruction, Meet, Part, Program, Run, Wait
from moesim.evidence import Estimate
from moesim.metrics.breakdown import Share, path_breakdown
from moesim.network.exchanges.base import exchange_sms
from moesim.steps.block import COMM, COMPUTE
from moesim.training.blocks import (
    Block,
    LaunchCost,
    backward_blocks,
    forward_blocks,
    longer,
    memory_share,
    phases,
)
from moesim.training.crowd import Crowd
from moesim.training.items import Item
from moesim.training.overlaps.base import LENT
from moesim.training.recompute import Recompute
from moesim.training.schedules.base import Pass
from moesim.training.work import LayerWork

HOST = "host"
NEAR = "near"
"""Collectives of small groups of ranks that hold the same part of the work: a stream of their own."""
ARRIVED = "arrived"
"""Nothing runs here: how far the exchanges were when the other pass of a pair has to wait for its own."""
STREAMS = (COMPUTE, COMM, NEAR, ARRIVED, HOST)
HOST_FAMILY = "host"

Errors = Mapping[str, NDArray[np.float64]]
Segments = Sequence[Sequence[Item]]
"""Items of a chunk, a layer each; embedding and head are segments of their own."""


class ChunkTimes:
    """Durations of the passes of any run of a model's layers."""

    def __init__(self, work: LayerWork, recompute: Recompute, host: LaunchCost) -> None:
        self.work, self.recompute, self.host = work, recompute, host
        size = max(work.plan.ep, 1)
        self.num_ranks = work.num_draws * size
        self._group = np.repeat(np.arange(work.num_draws), size)
        self._known: dict[Program, vector.Compiled] = {}
        self._lent_fraction = min(exchange_sms(work.fabric) / work.num_units, 1.0)

    def segments(self, layers: Sequence[int], *, first: bool, last: bool, mtp: bool = False) -> Segments:
        """Items of a chunk: ``layers``, with the embedding before and the head behind where it has them."""
        work = self.work
        segments = [list(work.embedding())] if first else []
        segments += [work.layer(layer) for layer in layers]
        if last:
            segments += [work.head()]
            segments += [work.mtp()] if mtp else []
        return segments

    def program(
        self, segments: Segments, kind: Pass, other: Segments = (), crowd: Crowd | None = None
    ) -> Program:
        """Program of one pass; a pair has ``segments`` forward beside ``other`` backward."""
        forward, backward = self._blocks(segments, kind, other)
        if crowd is not None:
            forward, backward = crowd.beside(forward), crowd.beside(backward)
        if kind is Pass.PAIR:
            instructions = self._woven(forward, backward)
            return Program(self.num_ranks, STREAMS, tuple(instructions))
        instructions = []
        for block in (*forward, *backward):
            instructions += self._work(block)
            if block.link is not None:
                instructions += self._moved(block)
                instructions += self._joined(block)
            elif block.host_waits:
                instructions.append(Wait(HOST, on=COMPUTE))
            instructions += block.layer
        return Program(self.num_ranks, STREAMS, tuple(instructions))

    def lost_s(self, segments: Segments, kind: Pass, other: Segments, crowd: Crowd) -> float:
        """Time that a crowd loses to the exchanges of a pass. [s]"""
        forward, backward = self._blocks(segments, kind, other)
        return crowd.lost_s([*forward, *backward])

    def _blocks(self, segments: Segments, kind: Pass, other: Segments) -> tuple[list[Block], list[Block]]:
        """Blocks of a pass, forward and backward; only a pair has both."""
        items = (item for segment in segments for item in segment)
        if kind is Pass.FORWARD:
            return forward_blocks(items), []
        if kind is Pass.PAIR:
            return forward_blocks(items), self._backward(other, Pass.BACKWARD)
        return [], self._backward(segments, kind)

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
            replace(i, parts=longer(i.parts, ratio))
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
        """Two passes in turn: while one's tokens travel, the other computes.

        Only exchanges in which the whole group meets are hidden: Megatron-Core and DualPipe cut a layer at
        these, and run what a small group exchanges in between as part of the work. Delayed weight gradients
        run as soon as their exchange is issued, beside the other pass's too (Megatron-Core,
        model_chunk_schedule_plan.py).
        """
        bound = memory_share([*forward, *backward])
        instructions: list[Instruction] = []
        for pair in zip_longest(phases(forward), phases(backward)):
            for phase in pair:
                for block in phase or ():
                    instructions += self._work(block)
                    if block.link is not None and not block.link.everybody:
                        instructions += self._moved(block) + self._joined(block)
                last = phase[-1] if phase else None
                if last is None or last.link is None or not last.link.everybody:
                    instructions.append(Wait(COMPUTE, on=ARRIVED))
                    continue
                instructions += self._issued(last)
                if last.beside:
                    instructions.append(Run(COMPUTE, last.beside))
                # the other pass computes again when its exchange, issued before this one, is over
                instructions += [Wait(COMPUTE, on=ARRIVED), Wait(ARRIVED, on=COMM)]
                instructions.append(Run(COMPUTE, (self._lent(last, bound),)))
        return [*instructions, Wait(COMPUTE, on=COMM)]

    def _work(self, block: Block) -> list[Instruction]:
        """Launches beside work: the first kernel waits for its launch, the block for its last one."""
        if not (block.launches and self.host.launch_s):
            return [Run(COMPUTE, block.work)] if block.work else []
        first = min(block.launches, 1.0)
        launches: list[Instruction] = [self._launch(first), Wait(COMPUTE, on=HOST)]
        if block.work:
            launches.append(Run(COMPUTE, block.work))
        more = block.launches - first
        return [*launches, self._launch(more), Wait(COMPUTE, on=HOST)] if more else launches

    def _launch(self, count: float) -> Run:
        host = self.host
        cost = Estimate(count * host.launch_s, HOST_FAMILY, host.grade, host.sigma)
        return Run(HOST, (Part("host launches", "cpu_compute", cost),))

    def _issued(self, block: Block) -> list[Instruction]:
        """The exchange of a block, after the work before it."""
        assert block.link is not None
        assert block.moved is not None
        counted: list[Instruction] = [Wait(HOST, on=COMPUTE)] if block.host_waits else []
        if block.link.everybody:
            return [*counted, Wait(COMM, on=COMPUTE), Meet(COMM, self._group, (block.moved,))]
        return [*counted, Wait(NEAR, on=COMPUTE), Run(NEAR, (block.moved,))]

    def _moved(self, block: Block) -> list[Instruction]:
        """The exchange of a block and weight gradients beside it."""
        issued = self._issued(block)
        return [*issued, Run(COMPUTE, (*block.beside, self._lent(block)))] if block.beside else issued

    def _lent(self, block: Block, bound: float = 0.0) -> Part:
        """What work beside an exchange misses.

        Work that arithmetic bounds misses the multiprocessors, work that memory bounds (a share ``bound`` of
        all) the bytes.
        """
        assert block.link is not None
        assert block.moved is not None
        estimate = block.moved.estimate
        missed_s = estimate.seconds * self._lent_fraction * (1 - bound) + block.link.memory_s * bound
        return Part(LENT, "compute", replace(estimate, seconds=missed_s))

    def _joined(self, block: Block) -> list[Instruction]:
        assert block.link is not None
        return [Wait(COMPUTE, on=COMM if block.link.everybody else NEAR)]
