"""Arrivals by the clock."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydantic import Field

from moesim.serving.policies import Floats, arrival_processes


@arrival_processes.register("uniform")
@dataclass(frozen=True)
class Uniform:
    """One request every ``1 / rate_per_s``."""

    rate_per_s: float = Field(gt=0, allow_inf_nan=False)

    def times(self, num_requests: int, rng: np.random.Generator) -> Floats:
        """The first at 0."""
        return np.arange(num_requests) / self.rate_per_s
