"""No overlap: every exchange is waited for before the next work is launched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from moesim.engine.program import Instruction
from moesim.steps.block import Block, await_exchange
from moesim.steps.overlap import overlap_policies


@overlap_policies.register("none")
@dataclass(frozen=True)
class NoOverlap:
    """Every exchange is waited for before the next work is launched."""

    num_batches: ClassVar[int] = 1

    def weave(self, batches: Sequence[Sequence[Block]], ranks: NDArray[np.bool_] | None) -> list[Instruction]:
        """Blocks one after the other."""
        (blocks,) = batches
        instructions: list[Instruction] = []
        for block in blocks:
            instructions += block.launch_work(ranks)
            if block.exchange is not None:
                instructions += block.launch_exchange(ranks) + await_exchange(ranks)
        return instructions
