"""GPipe: all forwards, then all backwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moesim.training.schedules.base import Geometry, Orders, Pass, Task, schedules, wants_chunks


@schedules.register("gpipe")
@dataclass(frozen=True)
class GPipe:
    """All forwards, then all backwards in reverse order; every microbatch's activations are alive at once.

    References
    ----------
    .. [1] Y. Huang et al., "GPipe: Efficient Training of Giant Neural Networks using Pipeline Parallelism,"
       arXiv:1811.06965, 2018.
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
        """The same for all stages."""
        numbers = range(geometry.num_microbatches)
        order = [Task(Pass.FORWARD, i) for i in numbers] + [Task(Pass.BACKWARD, i) for i in reversed(numbers)]
        return (tuple(order),) * geometry.num_stages
