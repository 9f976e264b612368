"""Whole layers in turn, whoever will be asked for (SE-MoE, and every system that streams its weights)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from moesim.memory.demand import Demand
from moesim.offload.prefetchers import Predictor, View, Wanted, prefetchers


class _Ring:
    def __init__(self, ahead: int) -> None:
        self.ahead = ahead

    def wanted(self, view: View) -> Wanted:
        count = view.demand.num_layers
        every = np.arange(view.demand.num_experts, dtype=np.int32)
        following = [(view.layer + step) % count for step in range(1, min(self.ahead, count - 1) + 1)]
        return [view.fetch(layer, every) for layer in following]


@prefetchers.register("ring")
@dataclass(frozen=True)
class Ring:
    """Fetches all experts of the next ``ahead`` layers, the first layers again after the last.

    With a pooled ``fifo`` cache of ``ahead + 1`` layers this is the ring of sections of SE-MoE
    (arXiv 2205.10034): a section is replaced by the one that many ahead once it is through. What has not
    arrived when a gate speaks is fetched only as far as it is needed.
    """

    ahead: Annotated[int, Field(ge=1)] = 1
    pass_cost_s: ClassVar[float] = 0.0

    def predictor(self, demand: Demand, rng: np.random.Generator) -> Predictor:
        """Nothing is guessed."""
        del demand, rng
        return _Ring(self.ahead)
