"""ZB1P: 1F1B whose weight gradients wait until the pipeline would otherwise stand still."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moesim.training.schedules.base import Geometry, Orders, Pass, Task, in_turn, schedules, wants_chunks


@schedules.register("zb1p")
@dataclass(frozen=True)
class ZeroBubbleOne:
    """1F1B with split backwards and late weight gradients (ZB-H1; DeepSeek's name is ZB1P).

    Forwards and input gradients go as in 1F1B. Stage ``s`` computes a weight gradient ``s`` backwards late:
    input gradients reach the first stages sooner, and late weight gradients fill the end of the last ones.
    All stages hold as many microbatches as the first one of 1F1B.

    References
    ----------
    .. [1] P. Qi, X. Wan, G. Huang, M. Lin, "Zero Bubble Pipeline Parallelism," arXiv:2401.10241, section
       2.1 (ZB-H1), 2023.
    .. [2] DeepSeek-AI, DualPipe, README, table of bubbles (ZB1P), 2025.
    """

    splits_backward: ClassVar[bool] = True
    pairs: ClassVar[bool] = False

    def problems(self, geometry: Geometry) -> list[str]:
        """It wants one chunk a stage."""
        return wants_chunks(geometry, 1)

    def part_of(self, stage: int, chunk: int, geometry: Geometry) -> int:
        """The stage."""
        return stage

    def orders(self, geometry: Geometry) -> Orders:
        """Stage ``s`` of ``p``: ``p - 1 - s`` forwards ahead, ``s`` weight gradients behind."""
        numbers = range(geometry.num_microbatches)
        forwards = [Task(Pass.FORWARD, i) for i in numbers]
        backwards = [Task(Pass.INPUT_GRADIENT, i) for i in numbers]
        last = geometry.num_stages - 1
        return tuple(
            tuple(_with_weights(in_turn(forwards, backwards, last - stage), behind=stage))
            for stage in range(geometry.num_stages)
        )


def _with_weights(tasks: list[Task], behind: int) -> list[Task]:
    """The tasks with each weight gradient ``behind`` input gradients later, or at the end."""
    found: list[Task] = []
    open_weights: list[Task] = []
    for task in tasks:
        found.append(task)
        if task.kind is Pass.INPUT_GRADIENT:
            open_weights.append(Task(Pass.WEIGHT_GRADIENT, task.microbatch, task.chunk))
            if len(open_weights) > behind:
                found.append(open_weights.pop(0))
    return found + open_weights
