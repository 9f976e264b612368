"""DualPipeV: DualPipe folded in the middle, so that no part of the model is held twice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moesim.training.schedules.base import Geometry, Orders, part_on_a_v, schedules, wants_a_v
from moesim.training.schedules.dualpipe import eight_phases


@schedules.register("dualpipe_v")
@dataclass(frozen=True)
class DualPipeV:
    """Every microbatch runs up through the stages and down again; otherwise as DualPipe, weights held once.

    References
    ----------
    .. [1] P. Qi et al., "Pipeline Parallelism with Controllable Memory," arXiv:2405.15362, 2024: V-shapes.
    .. [2] Sea AI Lab, "DualPipe could be better without the Dual," 2025: the cut in half.
    .. [3] DeepSeek-AI, DualPipe (github.com/deepseek-ai/DualPipe), DualPipeV, 2025.
    """

    splits_backward: ClassVar[bool] = True
    pairs: ClassVar[bool] = True

    def problems(self, geometry: Geometry) -> list[str]:
        """It wants two chunks a stage and at least two microbatches a stage."""
        return wants_a_v(geometry)

    def part_of(self, stage: int, chunk: int, geometry: Geometry) -> int:
        """Up through chunk 0, down through chunk 1."""
        return part_on_a_v(stage, chunk, geometry)

    def orders(self, geometry: Geometry) -> Orders:
        """Both directions have all microbatches; they meet at the last stage."""
        stages, count = geometry.num_stages, geometry.num_microbatches
        return tuple(
            eight_phases(stage, stages, count, lambda chunk, number: (number, chunk))
            for stage in range(stages)
        )
