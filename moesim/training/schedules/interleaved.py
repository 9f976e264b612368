"""Interleaved 1F1B: every stage holds several chunks of the model, so that the pipeline fills sooner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moesim.training.schedules.base import Geometry, Orders, Pass, Task, in_turn, schedules


@schedules.register("interleaved")
@dataclass(frozen=True)
class Interleaved:
    """1F1B over several chunks a stage (VPP), in the order of Megatron-LM.

    A group of microbatches passes the first chunk of a stage, then its second, and so on.

    Parameters
    ----------
    group_size : int, default 0
        Microbatches that pass one chunk before the stage turns to its next; 0: as many as stages.

    References
    ----------
    .. [1] D. Narayanan et al., "Efficient Large-Scale Language Model Training on GPU Clusters Using
       Megatron-LM," arXiv:2104.04473, section 2.2, 2021.
    """

    group_size: int = 0

    splits_backward: ClassVar[bool] = False
    pairs: ClassVar[bool] = False

    def problems(self, geometry: Geometry) -> list[str]:
        """It wants two or more chunks and whole groups of microbatches, at least as many as stages."""
        few = [] if geometry.num_chunks > 1 else ["got 1 chunk a stage; accepted: 2 or more (1: 1f1b)"]
        return few + group_problems(self.group_size, geometry)

    def part_of(self, stage: int, chunk: int, geometry: Geometry) -> int:
        """Chunks go round over the stages."""
        return chunk * geometry.num_stages + stage

    def orders(self, geometry: Geometry) -> Orders:
        """Stage ``s`` of ``p`` is ``2 (p - 1 - s) + (chunks - 1) group_size`` forwards ahead."""
        size = self.group_size or geometry.num_stages
        forwards = forwards_by_group(geometry, size)
        backwards = backwards_by_group(geometry, size)
        return tuple(
            tuple(in_turn(forwards, backwards, forwards_ahead(stage, geometry, size)))
            for stage in range(geometry.num_stages)
        )


def group_problems(group_size: int, geometry: Geometry) -> list[str]:
    """Why microbatches do not form groups of ``group_size`` (0: as many as stages)."""
    size = group_size or geometry.num_stages
    if size < geometry.num_stages:
        return [f"group_size: got {size}; accepted: at least {geometry.num_stages} (stages)"]
    if geometry.num_microbatches % size:
        return [f"got {geometry.num_microbatches} microbatches; accepted: a multiple of {size} (group_size)"]
    return []


def forwards_by_group(geometry: Geometry, size: int) -> list[Task]:
    """Forwards of a stage: each group of microbatches through its first chunk, its second..."""
    return [
        Task(Pass.FORWARD, microbatch, chunk)
        for first in range(0, geometry.num_microbatches, size)
        for chunk in range(geometry.num_chunks)
        for microbatch in range(first, first + size)
    ]


def backwards_by_group(geometry: Geometry, size: int) -> list[Task]:
    """Backwards of a stage: as the forwards, the last chunk first."""
    last = geometry.num_chunks - 1
    return [
        Task(Pass.BACKWARD, task.microbatch, last - task.chunk) for task in forwards_by_group(geometry, size)
    ]


def forwards_ahead(stage: int, geometry: Geometry, size: int) -> int:
    """Forwards that a stage is in front of its backwards."""
    return 2 * (geometry.num_stages - 1 - stage) + (geometry.num_chunks - 1) * size
