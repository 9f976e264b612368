"""Two-batch overlap: while one half of the tokens is exchanged, the other half computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from moesim.engine.program import Instruction
from moesim.steps.block import Block, await_exchange
from moesim.steps.overlap import overlap_policies


@overlap_policies.register("two_batch")
@dataclass(frozen=True)
class TwoBatch:
    """Half of the tokens compute while the other half is exchanged (DeepSeek-V3's decode and prefill).

    The halves take turns on the compute stream; an exchange is issued right after the work it
    needs and waited for only when its own half computes again. Smaller batches read the weights
    twice, so the gain is not certain: compare with ``none``.

    References
    ----------
    .. [1] DeepSeek-AI, "DeepSeek-V3 Technical Report," arXiv:2412.19437, section 3.4, 2024.
    """

    num_batches: ClassVar[int] = 2

    def weave(self, batches: Sequence[Sequence[Block]], ranks: NDArray[np.bool_] | None) -> list[Instruction]:
        """Blocks of the two halves in turn."""
        instructions: list[Instruction] = []
        for turn in zip(*batches, strict=True):
            for block in turn:
                instructions += block.launch_work(ranks)
                # the other half's exchange must be over before that half computes again, and what
                # this half issues now must not be waited for: so wait first, then issue
                instructions += await_exchange(ranks)
                instructions += block.launch_exchange(ranks)
        return instructions + await_exchange(ranks)
