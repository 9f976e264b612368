"""Arrivals more, or less, regular than Poisson."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydantic import Field

from moesim.serving.policies import Floats, arrival_processes


@arrival_processes.register("gamma")
@dataclass(frozen=True)
class Gamma:
    """Gamma gaps of mean ``1 / rate_per_s``.

    ``burstiness`` is the shape of the gaps, as in vLLM's benchmark: 1 is Poisson, less comes in bursts, more
    is regular.
    """

    rate_per_s: float = Field(gt=0, allow_inf_nan=False)
    burstiness: float = Field(1.0, gt=0, allow_inf_nan=False)

    def times(self, num_requests: int, rng: np.random.Generator) -> Floats:
        """Sums of gaps; the first request comes after the first gap."""
        scale = 1 / (self.rate_per_s * self.burstiness)
        return np.cumsum(rng.gamma(self.burstiness, scale, num_requests))
