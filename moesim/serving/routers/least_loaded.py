"""Requests sent where fewest are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field

from moesim.serving.cache import Segments
from moesim.serving.policies import Target, routers


@routers.register("least_loaded")
@dataclass(frozen=True)
class LeastLoaded:
    """Smallest weighted sum of waiting and running requests; ties go to the lowest index.

    A waiting request weighs four running ones by default, as in vLLM's balancer over data-parallel engines.
    """

    waiting_weight: float = Field(4.0, ge=0)

    reads_caches: ClassVar[bool] = False

    def choose(self, targets: Sequence[Target], segments: Segments, sequence: int, draw: float) -> int:
        """Least loaded target."""
        weight = self.waiting_weight
        loads = [weight * target.num_waiting + target.num_running for target in targets]
        return loads.index(min(loads))
