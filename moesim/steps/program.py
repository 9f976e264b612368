"""Blocks of all stages to one stream program, microbatches flowing through the pipeline.

Decode with a pipeline keeps one microbatch per stage in flight, as serving engines do; a microbatch
starts its next token when the last stage has sampled the previous one. Rounds of tokens are laid out
one after another, so the time of a token in steady state is the difference of two makespans.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.engine.program import Instruction, Part, Program, Receive, Send, Wait
from moesim.model.dtypes import bytes_per_element
from moesim.network.collectives.group import send
from moesim.steps.block import COMM, COMPUTE, STREAMS, Block
from moesim.steps.layers import Lane, StageBuilder
from moesim.steps.overlap import Overlap


@dataclass(frozen=True)
class StepProgram:
    """Programs whose makespans give a step's latency and its steady-state period.

    Attributes
    ----------
    latency : Program
        One microbatch through all stages.
    shorter, longer : Program or None
        One and two further rounds of all microbatches in flight; their difference is one period.
        None without a pipeline, where the period is the latency.
    """

    latency: Program
    shorter: Program | None = None
    longer: Program | None = None


def step_program(
    stages: Sequence[StageBuilder], lanes: Sequence[Sequence[Lane]], overlap: Overlap
) -> StepProgram:
    """Program of one step of all ``stages`` for the lanes that ``overlap`` asks for.

    Parameters
    ----------
    stages : sequence of StageBuilder
        In pipeline order.
    lanes : sequence of sequence of Lane
        For each stage ``overlap.num_batches`` parts of one microbatch; every microbatch in flight is alike.
    overlap : Overlap
        Orders each stage's blocks.
    """
    if len(stages) == 1:
        only = stages[0]
        instructions = overlap.weave([only.blocks(lane) for lane in lanes[0]], None)
        return StepProgram(Program(only.num_ranks, STREAMS, tuple(instructions)))
    pipeline = _Pipeline(stages, lanes, overlap)
    return StepProgram(
        pipeline.rounds(1, 1), pipeline.rounds(2, len(stages)), pipeline.rounds(3, len(stages))
    )


class _Pipeline:
    """Instruction lists of each stage, strung together for any number of microbatches."""

    def __init__(
        self, stages: Sequence[StageBuilder], lanes: Sequence[Sequence[Lane]], overlap: Overlap
    ) -> None:
        self.stages = stages
        self.num_ranks = stages[0].num_ranks
        self.tokens = sum(lane.tokens for lane in lanes[0])
        self.work = [self._woven(builder, own, overlap) for builder, own in zip(stages, lanes, strict=True)]

    def _woven(self, builder: StageBuilder, lanes: Sequence[Lane], overlap: Overlap) -> list[Instruction]:
        blocks: list[list[Block]] = [builder.blocks(lane) for lane in lanes]
        return overlap.weave(blocks, self._mask(builder))

    def _mask(self, builder: StageBuilder) -> NDArray[np.bool_]:
        mask = np.zeros(self.num_ranks, dtype=np.bool_)
        mask[builder.stage.ranks] = True
        return mask

    def rounds(self, num_rounds: int, num_microbatches: int) -> Program:
        """Program of ``num_rounds`` tokens of every microbatch."""
        instructions: list[Instruction] = []
        last = len(self.stages) - 1
        for number in range(num_rounds):
            for _ in range(num_microbatches):
                for index in range(len(self.stages)):
                    if index > 0:
                        instructions.append(self._receive(index - 1, index))
                    elif number > 0:
                        instructions.append(self._receive(last, 0))
                    instructions += self.work[index]
                    if index < last:
                        instructions += self._send(index, index + 1, self._activation_bytes())
                    elif number < num_rounds - 1:
                        instructions += self._send(last, 0, 0.0)
        return Program(self.num_ranks, STREAMS, tuple(instructions))

    def _activation_bytes(self) -> float:
        """Hidden states of one microbatch on one rank: tensor-parallel ranks send a slice each."""
        builder = self.stages[0]
        element = bytes_per_element(builder.dtypes.activations)
        return self.tokens * builder.model.hidden_size * element / builder.stage.tp

    def _peers(self, of: int, to: int) -> NDArray[np.int64]:
        peers = np.full(self.num_ranks, -1, dtype=np.int64)
        peers[self.stages[of].stage.ranks] = self.stages[to].stage.ranks
        return peers

    def _send(self, source: int, target: int, payload_bytes: float) -> list[Instruction]:
        first = self.stages[source].stage.ranks[:1], self.stages[target].stage.ranks[:1]
        estimate = send(payload_bytes, np.concatenate(first), self.stages[source].fabric)
        part, peers = Part("pipeline send", "send", estimate), self._peers(source, target)
        links = self.stages[source].links
        demand = None if links is None else links.demand_to_peers(peers, payload_bytes, estimate.seconds)
        return [
            Wait(COMM, on=COMPUTE, ranks=self._mask(self.stages[source])),
            Send(COMM, peers, (part,), demand=demand),
        ]

    def _receive(self, source: int, target: int) -> Instruction:
        return Receive(COMPUTE, self._peers(target, source))
