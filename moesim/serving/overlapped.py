"""Iterations whose exchanges run beside the work of other tokens, as an overlap policy orders them.

Every batch of the policy is an equal part of the iteration. Layers with experts are woven: work around the
experts, dispatch, experts, combine, of all parts in the policy's order. What lies outside of them is done
part after part, and the output head once.
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import lru_cache
from typing import cast

import numpy as np
from numpy.typing import NDArray

from moesim.engine import vector
from moesim.engine.durations import Durations
from moesim.engine.program import Part, Program, parts_of
from moesim.evidence import Estimate
from moesim.serving.step_costs import COMBINE, DISPATCH, EXPERTS
from moesim.steps.block import STREAMS, Block, Exchange
from moesim.steps.overlap import Overlap
from moesim.units import PS_PER_S

Floats = NDArray[np.float64]

BESIDE = "beside experts"
LOCKSTEP = 2
"""Ranks of the woven program: all are alike, and an exchange needs somebody to meet."""


@lru_cache(maxsize=16)
def _woven(overlap: Hashable, num_layers: int) -> vector.Compiled:
    """Program of the layers with experts; parts carry the name of their duration."""
    group = np.zeros(LOCKSTEP, dtype=np.int64)

    def part(name: str) -> Part:
        return Part(name, name, Estimate(0.0, name, "assumed", 0.0))

    def block(layer: int, work: str, exchange: str) -> Block:
        return Block(layer, (part(work),), Exchange(part(exchange), group))

    lane = [
        one
        for layer in range(num_layers)
        for one in (block(layer, BESIDE, DISPATCH), block(layer, EXPERTS, COMBINE))
    ]
    policy = cast("Overlap", overlap)  # registered policies are frozen
    instructions = policy.weave([lane] * policy.num_batches, None)
    return vector.compile(Program(LOCKSTEP, STREAMS, tuple(instructions)))


def layers_s(
    overlap: Overlap, num_layers: int, beside: Floats, dispatch: Floats, experts: Floats, combine: Floats
) -> Floats:
    """Seconds of the layers with experts, ``(sample,)``.

    Parameters
    ----------
    overlap : Overlap
        Orders the parts.
    num_layers : int
        Layers with experts, all alike.
    beside, dispatch, experts, combine : ndarray, ``(sample,)``
        Of one part, summed over all of these layers. [s]
    """
    compiled = _woven(cast("Hashable", overlap), num_layers)
    given = {BESIDE: beside, DISPATCH: dispatch, EXPERTS: experts, COMBINE: combine}
    each = {name: seconds[:, None] / num_layers for name, seconds in given.items()}
    waits = np.zeros((1, 1))
    rows = [each[found[0].name] if (found := parts_of(i)) else waits for i in compiled.program.instructions]
    done = vector.run(compiled, Durations.from_seconds(rows))
    return np.asarray(done.makespan_ps / PS_PER_S)
