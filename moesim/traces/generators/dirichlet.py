"""Popularity drawn from a Dirichlet prior: the multinomial model of load-balancing studies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from moesim.traces.generators import generators
from moesim.traces.routing import RoutingTrace
from moesim.traces.synthetic import check_shape, generated_trace, independent_choices

_LEAST = 2.0**-40


@generators.register("dirichlet")
@dataclass(frozen=True)
class Dirichlet:
    """Loads of a layer drawn from a symmetric Dirichlet distribution, tokens independent.

    A large concentration gives flat loads; the squared coefficient of variation of the drawn loads is
    about ``1 / concentration``.
    """

    concentration: Annotated[float, Field(gt=0, le=1_000_000)] = 2.5

    def generate(
        self, num_tokens: int, num_layers: int, num_experts: int, top_k: int, rng: np.random.Generator
    ) -> RoutingTrace:
        """Trace with Dirichlet popularity."""
        check_shape(num_tokens, num_layers, num_experts, top_k)
        popularity = rng.dirichlet(np.full(num_experts, self.concentration), num_layers)
        ids = independent_choices(np.maximum(popularity, _LEAST), num_tokens, top_k, rng)
        source = f"generator dirichlet, concentration={self.concentration}"
        return generated_trace(ids, num_experts, source=source)
