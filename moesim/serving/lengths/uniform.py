"""Lengths between two ends."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydantic import Field

from moesim.errors import InputError
from moesim.serving.policies import Ints, length_distributions


@length_distributions.register("uniform")
@dataclass(frozen=True)
class Uniform:
    """Integers from ``low`` to ``high``, both included, equally likely."""

    low: int = Field(ge=1)
    high: int = Field(ge=1)

    def draw(self, num_requests: int, rng: np.random.Generator) -> Ints:
        """Independent draws.

        Raises
        ------
        InputError
            If the ends are the wrong way round.
        """
        if self.high < self.low:
            raise InputError.at("workload.high", self.high, f"at least low = {self.low}")
        return rng.integers(self.low, self.high + 1, num_requests)
