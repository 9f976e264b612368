"""Speculative decoding: how many tokens a sequence gains in each of its decode steps.

A step brings ``tokens`` drafts beside the sequence's own token. A draft counts if it is right and all before
it are, so that a step of a request with acceptance :math:`a` gains at least :math:`k + 1` tokens with
probability :math:`a^k`. Requests may differ: their acceptance is then drawn from a beta distribution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.evidence import rng_for

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Drafting:
    """Drafts of an engine.

    Attributes
    ----------
    tokens : int
        Drafts of a step, at least 1. [tokens]
    acceptance : float
        Chance that a draft is right given that those before it were, mean over requests. [-]
    spread : float
        Standard deviation of a request's acceptance. [-]
    seed : int
        Of the draws; those of a request depend on nothing else.
    """

    tokens: int
    acceptance: float
    spread: float = 0.0
    seed: int = 0

    @property
    def gain(self) -> float:
        """Mean tokens of a step, over requests with equally many steps. [tokens]"""
        total = power = 1.0
        shape = self._shape
        for k in range(self.tokens):
            # next moment of the acceptance
            power *= self.acceptance if shape is None else (shape[0] + k) / (sum(shape) + k)
            total += power
        return float(total)

    def gained(self, request: int, most_steps: int) -> Ints:
        """Tokens that a request has gained after each of its steps, ``(1 + most_steps,)``. [tokens]"""
        rng = rng_for(self.seed, f"serving/drafts/{request}")
        shape = self._shape
        chance = self.acceptance if shape is None else float(rng.beta(*shape))
        draws = rng.random(most_steps)
        accepted = np.zeros(most_steps, dtype=np.int64)
        for k in range(1, self.tokens + 1):
            accepted += draws < chance**k
        return np.concatenate([[0], np.cumsum(accepted + 1)]).astype(np.int64)

    @property
    def _shape(self) -> tuple[float, float] | None:
        """Parameters of the beta distribution of a request's acceptance; None where all are alike."""
        if self.spread == 0:
            return None
        mean = self.acceptance
        size = mean * (1 - mean) / (self.spread * self.spread) - 1
        return mean * size, (1 - mean) * size


def most_spread(acceptance: float) -> float:
    """Spread that no distribution with this mean reaches. [-]"""
    return math.sqrt(acceptance * (1 - acceptance))
