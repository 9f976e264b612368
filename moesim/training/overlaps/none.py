"""No overlap: each of the three waits for the one before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moesim.engine.program import Instruction
from moesim.training.overlaps.base import Triple, triple_overlaps


@triple_overlaps.register("none")
@dataclass(frozen=True)
class Sequential:
    """Dispatch, then experts, then combine."""

    reads_counts: ClassVar[bool] = True

    def launch(self, triple: Triple) -> list[Instruction]:
        """One after the other."""
        there = [*triple.computed(), *triple.dispatch(), *triple.arrived()]
        return [*there, *triple.experts(), *triple.computed(), *triple.combine(), *triple.arrived()]
