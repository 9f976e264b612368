"""Overlap policies: how the blocks of concurrent batches are ordered on the streams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from moesim.engine.program import Instruction
from moesim.registry import Registry
from moesim.steps.block import Block


class Overlap(Protocol):
    """A rewrite of one stage's blocks into instructions.

    ``num_batches`` says into how many equal batches the policy wants the stage's tokens split.
    """

    num_batches: ClassVar[int]

    def weave(self, batches: Sequence[Sequence[Block]], ranks: NDArray[np.bool_] | None) -> list[Instruction]:
        """Instructions of ``num_batches`` equally long lists of blocks on ``ranks`` (None: all)."""
        ...


overlap_policies: Registry[Overlap] = Registry("overlap", "moesim.steps.overlap")
