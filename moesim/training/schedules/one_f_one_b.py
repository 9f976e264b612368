"""1F1B: a backward follows each forward as soon as the pipeline is full."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moesim.training.schedules.base import Geometry, Orders, Pass, Task, in_turn, schedules, wants_chunks


@schedules.register("1f1b")
@dataclass(frozen=True)
class OneForwardOneBackward:
    """Fill the pipeline, then one forward and one backward in turn.

    Alive on a stage are as many microbatches as there are stages from it to the end.

    References
    ----------
    .. [1] D. Narayanan et al., "Memory-Efficient Pipeline-Parallel DNN Training" (PipeDream-Flush),
       arXiv:2006.09503, 2020.
    """

    splits_backward: ClassVar[bool] = False
    pairs: ClassVar[bool] = False

    def problems(self, geometry: Geometry) -> list[str]:
        """It wants one chunk a stage."""
        return wants_chunks(geometry, 1)

    def part_of(self, stage: int, chunk: int, geometry: Geometry) -> int:
        """The stage."""
        return stage

    def orders(self, geometry: Geometry) -> Orders:
        """Stage ``s`` of ``p`` is ``p - 1 - s`` forwards ahead of its backwards."""
        numbers = range(geometry.num_microbatches)
        forwards = [Task(Pass.FORWARD, i) for i in numbers]
        backwards = [Task(Pass.BACKWARD, i) for i in numbers]
        last = geometry.num_stages - 1
        return tuple(tuple(in_turn(forwards, backwards, last - stage)) for stage in range(last + 1))
