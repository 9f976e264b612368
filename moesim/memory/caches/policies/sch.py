"""Segment cache: knows the next few passes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from moesim.memory.caches.policies.base import Dynamic
from moesim.memory.caches.ranking import AGE, Ids, Ranking, Rows, Worth, cache_policies
from moesim.memory.demand import Demand


class _Window(Ranking):
    def __init__(self, demand: Demand, segment: int) -> None:
        super().__init__(demand)
        self.demand, self.segment = demand, segment
        self.coming = np.zeros_like(self.last_use)
        self.counted = np.zeros(demand.num_layers, np.int64)

    def touch(self, rows: Rows, ids: Ids, at: int, weights: NDArray[np.float32] | None) -> None:
        super().touch(rows, ids, at, weights)
        line = rows[:, 0]
        until = min(at + 1 + self.segment, self.demand.num_passes)
        # rows served together have always been served together
        for passed in range(max(int(self.counted[line[0]]), at), until):
            self.coming[rows, self.demand.ids[passed, line]] += 1
        self.counted[line] = until
        self.coming[rows, ids] -= 1

    def worth(self, rows: Rows, ids: Ids) -> Worth:
        return self.coming[rows, ids] + AGE * self.last_use[rows, ids]


@cache_policies.register("sch")
@dataclass(frozen=True)
class SegmentCache(Dynamic):
    """Evict the expert least used in the next ``segment`` passes; among equals the one used longest ago.

    arXiv 2505.16056, segment cache best hit rate; the look-ahead does not stop at the end of a request.
    """

    segment: Annotated[int, Field(ge=1)] = 16
    bypasses: ClassVar[bool] = False

    def ranking(self, demand: Demand, rng: np.random.Generator) -> Ranking:  # noqa: ARG002
        """Uses in the window ahead."""
        return _Window(demand, self.segment)
