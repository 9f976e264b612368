"""Collectives of sharded weights and gradients beside a pass: what each takes from the other.

They share ports with the pass's own exchanges, max-min fairly (:func:`moesim.network.crowding.speeds`). A
block of threads of each of their channels holds a multiprocessor, which work that arithmetic bounds misses;
work that memory bounds misses the bytes they read and write.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moesim.engine.program import Instruction, Meet, Run
from moesim.network.crowding import PortUse, speeds
from moesim.steps.block import COMPUTE
from moesim.training.blocks import Block, longer, memory_share

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Crowd:
    """What runs beside a pass while it lasts.

    Attributes
    ----------
    use : PortUse
        Of a rank's ports.
    sms_fraction, memory_fraction : float
        Share of a device's multiprocessors, and of its main memory's rate. [-]
    """

    use: PortUse
    sms_fraction: float
    memory_fraction: float

    def beside(self, blocks: Sequence[Block]) -> list[Block]:
        """The blocks of a pass as long as they last in this crowd."""
        bound = memory_share(blocks)
        work_ratio = 1 / (1 - self.sms_fraction * (1 - bound) - self.memory_fraction * bound)
        return [self._stretched(block, work_ratio) for block in blocks]

    def lost_s(self, blocks: Sequence[Block]) -> float:
        """Time that the crowd itself loses to the exchanges of a pass, on the mean rank. [s]"""
        lost_s = 0.0
        for block in blocks:
            own, crowds = speeds(block.use, self.use)
            lost_s += _exchanged_s(block) / own * (1 - crowds)
        return lost_s

    def _stretched(self, block: Block, work_ratio: float) -> Block:
        exchange_ratio = 1 / speeds(block.use, self.use)[0]

        def instruction(one: Instruction) -> Instruction:
            if not isinstance(one, Run | Meet):
                return one
            return replace(
                one, parts=longer(one.parts, work_ratio if one.stream == COMPUTE else exchange_ratio)
            )

        return replace(
            block,
            work=longer(block.work, work_ratio),
            beside=longer(block.beside, work_ratio),
            moved=None if block.moved is None else longer([block.moved], exchange_ratio)[0],
            layer=tuple(instruction(one) for one in block.layer),
        )


def overlapped_s(alone_s: Floats, crowded_s: Floats, lost_s: Floats | float, collectives_s: Floats) -> Floats:
    """Duration of a pass with collectives beside it, layer by layer; all broadcast. [s]

    Parameters
    ----------
    alone_s, crowded_s : ndarray
        The pass without the collectives, and as if they ran all the time. [s]
    lost_s : ndarray or float
        What the collectives lose meanwhile to the pass's exchanges. [s]
    collectives_s : ndarray
        The collectives alone. [s]

    Notes
    -----
    Both are spread evenly over the pass. While both run, the pass advances by ``alone / crowded`` and the
    collectives by ``(crowded - lost) / crowded``; whoever is left goes on alone.
    """
    advanced_s = crowded_s - lost_s
    fraction = np.divide(
        collectives_s, advanced_s, out=np.ones_like(advanced_s * collectives_s), where=advanced_s > 0
    )
    shorter = alone_s + np.minimum(fraction, 1.0) * (crowded_s - alone_s)
    return np.maximum(shorter, np.where(collectives_s > advanced_s, collectives_s + lost_s, 0.0))


def _exchanged_s(block: Block) -> float:
    """Seconds of a block's exchanges, on the mean rank. [s]"""
    own = [] if block.moved is None else [block.moved]
    inside = [
        p for one in block.layer if isinstance(one, Run | Meet) and one.stream != COMPUTE for p in one.parts
    ]
    return sum(float(np.mean(part.estimate.seconds)) for part in (*own, *inside))
