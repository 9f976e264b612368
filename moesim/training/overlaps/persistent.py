"""One kernel for the whole layer (FlashMoE)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from moesim.engine.program import Instruction
from moesim.training.overlaps.base import Triple, longest, stretched, triple_overlaps


@triple_overlaps.register("persistent")
@dataclass(frozen=True)
class Persistent:
    """Tiles of both products and of the way back as tasks of one kernel that never returns to the host.

    Tiles move by one-sided writes of the processors that compute, there and back over the same ports, so that
    only the first tile on its way there and the last on its way back are seen.

    Attributes
    ----------
    tiles : int
        Tiles of rows that a device computes. [-]

    References
    ----------
    .. [1] Aimuyo et al., "FlashMoE: Fast Distributed MoE in a Single Kernel," arXiv:2506.04667.
    """

    reads_counts: ClassVar[bool] = False
    tiles: Annotated[int, Field(ge=1)] = 64

    def launch(self, triple: Triple) -> list[Instruction]:
        """One kernel on the compute stream."""
        there, experts, back = (
            curve(1.0) for curve in (triple.dispatch_s, triple.experts_s, triple.combine_s)
        )
        moving = stretched(there, 1.0, np.asarray(back.seconds))
        edge = np.minimum(moving.seconds, experts.seconds) / self.tiles
        return [triple.fused("persistent_experts", stretched(longest(experts, moving), 1.0, edge))]
