"""Requests sent to where their prompts begin already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field

from moesim.serving.cache import Segments
from moesim.serving.policies import Target, routers


@routers.register("prefix_aware")
@dataclass(frozen=True)
class PrefixAware:
    """Longest cached start among targets that are not overloaded; ties go to the least loaded.

    A target is overloaded when it has more than ``max_extra_requests`` requests above the least loaded one.
    """

    max_extra_requests: int = Field(32, ge=0)

    reads_caches: ClassVar[bool] = True

    def choose(self, targets: Sequence[Target], segments: Segments, sequence: int, draw: float) -> int:
        """Target with most blocks of the prompt."""
        loads = [target.num_waiting + target.num_running for target in targets]
        limit = min(loads) + self.max_extra_requests
        scores = [
            (-target.cache.peek(segments)[0], load, index)
            for index, (target, load) in enumerate(zip(targets, loads, strict=True))
            if load <= limit
        ]
        return min(scores)[2]
