"""No overlap: every exchange is waited for before the next work is launched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from moesim.engine.program import Instruction
from moesim.steps.overlap import overlap_policies
from moesim.steps.segment import Segment, await_exchange


@overlap_policies.register("none")
@dataclass(frozen=True)
class NoOverlap:
    """Every exchange is waited for before the next work is launched."""

    num_batches: ClassVar[int] = 1

    def weave(
        self, batches: Sequence[Sequence[Segment]], ranks: NDArray[np.bool_] | None
    ) -> list[Instruction]:
        """Segments one after the other."""
        (segments,) = batches
        instructions: list[Instruction] = []
        for segment in segments:
            instructions += segment.launch_work(ranks)
            if segment.exchange is not None:
                instructions += segment.launch_exchange(ranks) + await_exchange(ranks)
        return instructions
