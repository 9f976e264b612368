"""1F1B: a backward follows each forward as soon as the pipeline is full."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moesim.training.schedules.base import Geometry, Orders, Pass, Task, schedules, wants_one_chunk


@schedules.register("1f1b")
@dataclass(frozen=True)
class OneForwardOneBackward:
    """Fill the pipeline, then forward and backward in turn: alive are as many microbatches as stages follow.

    References
    ----------
    .. [1] D. Narayanan et al., "Memory-Efficient Pipeline-Parallel DNN Training" (PipeDream-Flush),
       arXiv:2006.09503, 2020.
    """

    splits_backward: ClassVar[bool] = False
    pairs: ClassVar[bool] = False

    def problems(self, geometry: Geometry) -> list[str]:
        """It wants one chunk a stage."""
        return wants_one_chunk(geometry)

    def part_of(self, stage: int, chunk: int, geometry: Geometry) -> int:
        """The stage."""
        return stage

    def orders(self, geometry: Geometry) -> Orders:
        """Stage ``s`` of ``p`` is ``p - 1 - s`` forwards ahead of its backwards."""
        return tuple(
            tuple(alternating(geometry.num_microbatches, geometry.num_stages - 1 - stage))
            for stage in range(geometry.num_stages)
        )


def alternating(num_microbatches: int, ahead: int) -> list[Task]:
    """Forwards and backwards of one stage in turn, the forwards up to ``ahead`` in front."""
    tasks = [Task(Pass.FORWARD, i) for i in range(min(ahead, num_microbatches))]
    for i in range(num_microbatches):
        if i + ahead < num_microbatches:
            tasks.append(Task(Pass.FORWARD, i + ahead))
        tasks.append(Task(Pass.BACKWARD, i))
    return tasks
