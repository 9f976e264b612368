"""No prefetch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moesim.memory.demand import Demand
from moesim.offload.prefetchers import Predictor, View, Wanted, prefetchers


class _Nothing:
    def wanted(self, view: View) -> Wanted:  # noqa: ARG002
        return ()


@prefetchers.register("none")
@dataclass(frozen=True)
class NoPrefetch:
    """Experts are fetched when their gate asks for them."""

    pass_cost_s: ClassVar[float] = 0.0

    def predictor(self, demand: Demand, rng: np.random.Generator) -> Predictor:
        """Nothing to remember."""
        del demand, rng
        return _Nothing()
