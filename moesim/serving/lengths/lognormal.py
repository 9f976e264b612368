"""Lengths with a long tail."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydantic import Field

from moesim.serving.policies import Ints, length_distributions


@length_distributions.register("lognormal")
@dataclass(frozen=True)
class Lognormal:
    """Log-normal with this median and sigma of the logarithm, rounded, cut to ``[1, maximum]``.

    The usual fit to prompts and answers of conversations.
    """

    median: float = Field(gt=0, allow_inf_nan=False)
    sigma: float = Field(ge=0, allow_inf_nan=False)
    maximum: int = Field(2**17, ge=1)

    def draw(self, num_requests: int, rng: np.random.Generator) -> Ints:
        """Independent draws."""
        drawn = self.median * np.exp(self.sigma * rng.standard_normal(num_requests))
        return np.clip(np.rint(drawn), 1, self.maximum).astype(np.int64)
