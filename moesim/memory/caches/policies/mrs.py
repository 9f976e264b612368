"""Gate scores remembered with a decay (HybriMoE)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from moesim.memory.caches.policies.base import Dynamic
from moesim.memory.caches.ranking import AGE, Ids, Ranking, Rows, Worth, cache_policies
from moesim.memory.demand import Demand


class _Scored(Ranking):
    def __init__(self, demand: Demand, rate: float) -> None:
        super().__init__(demand)
        self.score = np.zeros_like(self.last_use)
        self.rate = rate

    def touch(self, rows: Rows, ids: Ids, at: int, weights: NDArray[np.float32] | None) -> None:
        super().touch(rows, ids, at, weights)
        given = np.full(ids.shape, 1.0 / ids.shape[1]) if weights is None else weights
        self.score[rows[:, 0]] *= 1 - self.rate
        self.score[rows, ids] += self.rate * given

    def worth(self, rows: Rows, ids: Ids) -> Worth:
        return self.score[rows, ids] + AGE * AGE * self.last_use[rows, ids]


@cache_policies.register("mrs")
@dataclass(frozen=True)
class Mrs(Dynamic):
    """Score S becomes ``rate * gate + (1 - rate) * S`` at every pass; the lowest score goes.

    HybriMoE (arXiv 2504.05897) keeps about 2k best gate scores of a token; a trace has the k chosen
    ones, and without gate weights each counts ``1/k``.
    """

    rate: Annotated[float, Field(gt=0, le=1)] = 0.3
    bypasses: ClassVar[bool] = False

    def ranking(self, demand: Demand, rng: np.random.Generator) -> Ranking:  # noqa: ARG002
        """Decayed gate scores."""
        return _Scored(demand, self.rate)
