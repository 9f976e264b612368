"""What was missing joins the cache behind the work (asynchronous cache updates)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from moesim.memory.demand import Demand
from moesim.offload.prefetchers import Predictor, View, Wanted, prefetchers
from moesim.offload.prefetchers.impact import Impact
from moesim.offload.prefetchers.next_gate import Accuracy


class _Fill:
    def __init__(self, ahead: Predictor | None) -> None:
        self.ahead = ahead

    def wanted(self, view: View) -> Wanted:
        first = list(self.ahead.wanted(view)) if self.ahead is not None else []
        return [*first, view.fetch(view.layer, view.needed(view.layer))]


@prefetchers.register("fill")
@dataclass(frozen=True)
class Fill:
    """Experts that a layer lacked are copied in when the link is idle, for the passes to come.

    With ``accuracy`` given, what the next layers' gates say goes first, by impact (HybriMoE).
    """

    accuracy: tuple[Accuracy, ...] = ()
    fetches: Annotated[int, Field(ge=1)] = 1
    pass_cost_s: ClassVar[float] = 0.0

    def predictor(self, demand: Demand, rng: np.random.Generator) -> Predictor:
        """Both together."""
        ahead = Impact(self.accuracy, self.fetches).predictor(demand, rng) if self.accuracy else None
        return _Fill(ahead)
