"""All of one length."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydantic import Field

from moesim.serving.policies import Ints, length_distributions


@length_distributions.register("fixed")
@dataclass(frozen=True)
class Fixed:
    """Every request has ``tokens``."""

    tokens: int = Field(ge=1)

    def draw(self, num_requests: int, rng: np.random.Generator) -> Ints:
        """No randomness is used."""
        return np.full(num_requests, self.tokens, dtype=np.int64)
