"""Arrivals that know nothing of each other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydantic import Field

from moesim.serving.policies import Floats, arrival_processes


@arrival_processes.register("poisson")
@dataclass(frozen=True)
class Poisson:
    """Exponential gaps of mean ``1 / rate_per_s``."""

    rate_per_s: float = Field(gt=0, allow_inf_nan=False)

    def times(self, num_requests: int, rng: np.random.Generator) -> Floats:
        """Sums of gaps; the first request comes after the first gap."""
        return np.cumsum(rng.exponential(1 / self.rate_per_s, num_requests))
