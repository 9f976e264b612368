"""Expert paths seen before (MoE-Infinity)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from moesim.memory.demand import Demand
from moesim.offload.prefetchers import Predictor, View, Wanted, prefetchers


class _Paths:
    """Counts of pairs (expert of a layer, expert of the next) in passes gone by."""

    def __init__(self, demand: Demand, experts: int) -> None:
        shape = (max(1, demand.num_layers - 1), demand.num_experts, demand.num_experts)
        self.pairs = np.zeros(shape, np.float32)
        self.experts = experts

    def wanted(self, view: View) -> Wanted:
        now = view.needed(view.layer)
        if view.layer > 0:
            before = view.needed(view.layer - 1)
            self.pairs[view.layer - 1][np.ix_(before, now)] += 1
        if view.layer + 1 >= view.demand.num_layers:
            return ()
        score = self.pairs[view.layer][now].sum(axis=0)
        count = self.experts or now.size
        best = np.argsort(-score, kind="stable")[:count].astype(np.int32)
        return [view.fetch(view.layer + 1, best[score[best] > 0])]


@prefetchers.register("history")
@dataclass(frozen=True)
class History:
    """Fetches for the next layer what most often followed the present experts so far.

    ``experts``: how many; 0 means as many as the present layer uses.
    """

    experts: Annotated[int, Field(ge=0)] = 0
    pass_cost_s: ClassVar[float] = 0.0

    def predictor(self, demand: Demand, rng: np.random.Generator) -> Predictor:
        """Empty counts."""
        del rng
        return _Paths(demand, self.experts)
