"""Requests thrown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from moesim.serving.cache import Segments
from moesim.serving.policies import Target, routers


@routers.register("random")
@dataclass(frozen=True)
class Random:
    """Uniformly at random: what a stateless balancer does."""

    reads_caches: ClassVar[bool] = False

    def choose(self, targets: Sequence[Target], segments: Segments, sequence: int, draw: float) -> int:
        """Target of the request's own draw."""
        return int(draw * len(targets))
