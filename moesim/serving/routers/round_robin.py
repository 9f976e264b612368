"""Requests dealt like cards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from moesim.serving.cache import Segments
from moesim.serving.policies import Target, routers


@routers.register("round_robin")
@dataclass(frozen=True)
class RoundRobin:
    """Request ``i`` goes to target ``i mod targets``."""

    reads_caches: ClassVar[bool] = False

    def choose(self, targets: Sequence[Target], segments: Segments, sequence: int, draw: float) -> int:
        """Next in turn; nothing else is looked at."""
        return sequence % len(targets)
