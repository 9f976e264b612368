"""Arrivals all at once, again and again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydantic import Field

from moesim.serving.policies import Floats, arrival_processes


@arrival_processes.register("burst")
@dataclass(frozen=True)
class Burst:
    """``size`` requests at once, every ``period_s``; without a size all at the start."""

    size: int | None = Field(None, ge=1)
    period_s: float = Field(0.0, ge=0, allow_inf_nan=False)

    def times(self, num_requests: int, rng: np.random.Generator) -> Floats:
        """The first burst at 0."""
        which = np.arange(num_requests) // (self.size or num_requests)
        return np.asarray(which * self.period_s, dtype=float)
