"""Expert layers one after another, launched by a host that has to read token counts in each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moesim.engine import Program, durations_ps, to_seconds, vector
from moesim.engine.program import Instruction, Meet, Part, Run, Wait
from moesim.evidence import Estimate
from moesim.steps.block import COMM, COMPUTE
from moesim.training.chunks import HOST
from moesim.training.overlaps import Triple, TripleOverlap

STREAMS = (COMPUTE, COMM, HOST)
LAYERS = 4
"""Layers that are run: the last one's time is what every further layer takes."""
ATTENTION_LAUNCHES = 7
"""Two norms, two products, rotation, attention, sum with the residual: all of a layer but its experts."""


@dataclass(frozen=True)
class Hosted:
    """What a framework's host launches in a layer.

    Attributes
    ----------
    launch_s : float
        Host time of one described operation. [s]
    before, kernel, after : float
        Operations before the counts are read, for each kernel of the policy on the compute stream, and
        after these. [-]
    sorted_s, summed_s : float
        Device time to sort rows before and to sum them after the exchanges and experts. [s]
    """

    launch_s: float
    before: float
    kernel: float
    after: float
    sorted_s: float = 0.0
    summed_s: float = 0.0

    def layer_s(self, policy: TripleOverlap, triple: Triple, attention_s: float) -> float:
        """Time of a layer beside its attention, once layers follow each other."""
        layer = self._layer(policy, triple, attention_s)
        ends = [_end_s(layer * count, len(triple.group)) for count in (LAYERS - 1, LAYERS)]
        return ends[1] - ends[0] - attention_s

    def _layer(self, policy: TripleOverlap, triple: Triple, attention_s: float) -> list[Instruction]:
        count = ATTENTION_LAUNCHES if attention_s else 0.0
        launched = list(self._launched(_device("attention", attention_s), count))
        launched += self._launched(_device("sorting", self.sorted_s), self.before)
        if policy.reads_counts:
            launched.append(Wait(HOST, on=COMPUTE))
        for instruction in policy.launch(triple):
            kernel = isinstance(instruction, Run | Meet) and instruction.stream == COMPUTE
            launched += self._launched(instruction, self.kernel) if kernel else [instruction]
        return [*launched, *self._launched(_device("sums", self.summed_s), self.after)]

    def _launched(self, kernel: Instruction, count: float) -> Sequence[Instruction]:
        """A kernel waits for the first of its launches, what follows for the last."""
        first = min(count, 1.0)
        return (
            self._host(first),
            Wait(COMPUTE, on=HOST),
            kernel,
            self._host(count - first),
            Wait(COMPUTE, on=HOST),
        )

    def _host(self, count: float) -> Run:
        cost = Estimate(count * self.launch_s, HOST, "assumed", 0.0)
        return Run(HOST, (Part("host launches", "cpu_compute", cost),))


def _device(name: str, seconds: float) -> Run:
    return Run(COMPUTE, (Part(name, "compute", Estimate(seconds, name, "assumed", 0.0)),))


def _end_s(instructions: Sequence[Instruction], num_ranks: int) -> float:
    program = Program(num_ranks, STREAMS, tuple(instructions))
    clocks_ps = vector.run(vector.compile(program), durations_ps(program)).clocks_ps
    return float(np.max(to_seconds(clocks_ps[STREAMS.index(COMPUTE)])))
