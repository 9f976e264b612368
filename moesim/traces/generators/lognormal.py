"""Popularity of each expert is drawn from a log-normal distribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from moesim.traces.generators import generators
from moesim.traces.routing import RoutingTrace
from moesim.traces.synthetic import generated_trace, independent_choices


@generators.register("lognormal")
@dataclass(frozen=True)
class Lognormal:
    """Load proportional to ``exp(popularity_sigma * z)``, drawn anew per layer and expert.

    Public traces fit sigma 0.6 to 1.0 (64 experts, top-6) and 1.2 to 2.1 (32 experts, top-4).
    """

    popularity_sigma: Annotated[float, Field(ge=0, le=8)] = 0.8

    def generate(
        self, num_tokens: int, num_layers: int, num_experts: int, top_k: int, rng: np.random.Generator
    ) -> RoutingTrace:
        """Trace with log-normal popularity."""
        popularity = np.exp(self.popularity_sigma * rng.standard_normal((num_layers, num_experts)))
        ids = independent_choices(popularity, num_tokens, top_k, rng)
        source = f"generator lognormal, popularity_sigma={self.popularity_sigma}"
        return generated_trace(ids, num_experts, source=source)
