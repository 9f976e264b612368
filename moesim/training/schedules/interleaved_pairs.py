"""Interleaved 1F1B with forwards beside backwards: one's exchanges hide under the other's work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moesim.training.schedules.base import Geometry, Orders, Pass, Task, schedules
from moesim.training.schedules.interleaved import (
    backwards_by_group,
    forwards_ahead,
    forwards_by_group,
    group_problems,
)


@schedules.register("interleaved_pairs")
@dataclass(frozen=True)
class InterleavedPairs:
    """Interleaved 1F1B with each forward beside a backward (Megatron's 1F1B all-to-all overlap).

    The forward and the backward of a pair belong to different microbatches on every stage, which takes one
    forward more in front than ``interleaved``. One chunk a stage is accepted where there is no pipeline.

    Parameters
    ----------
    group_size : int, default 0
        Microbatches that pass one chunk before the stage turns to its next; 0: as many as stages.

    References
    ----------
    .. [1] NVIDIA, Megatron Core, option ``overlap_moe_expert_parallel_comm``, 2025.
    """

    group_size: int = 0

    splits_backward: ClassVar[bool] = False
    pairs: ClassVar[bool] = True

    def problems(self, geometry: Geometry) -> list[str]:
        """As ``interleaved``."""
        few = geometry.num_chunks == 1 < geometry.num_stages
        found = [f"got 1 chunk on {geometry.num_stages} stages; accepted: 2 or more"] if few else []
        return found + group_problems(self.group_size, geometry)

    def part_of(self, stage: int, chunk: int, geometry: Geometry) -> int:
        """Chunks go round over the stages."""
        return chunk * geometry.num_stages + stage

    def orders(self, geometry: Geometry) -> Orders:
        """Forwards in front, then pairs, then the backwards that are left."""
        size = self.group_size or geometry.num_stages
        forwards = forwards_by_group(geometry, size)
        backwards = backwards_by_group(geometry, size)
        orders = []
        for stage in range(geometry.num_stages):
            ahead = forwards_ahead(stage, geometry, size) + 1
            pairs = [
                Task(Pass.PAIR, f.microbatch, f.chunk, b.microbatch, b.chunk)
                for f, b in zip(forwards[ahead:], backwards, strict=False)
            ]
            orders.append((*forwards[:ahead], *pairs, *backwards[len(pairs) :]))
        return tuple(orders)
