"""The experts that a request's own prompt used most (kt-kernel's dynamic placement)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.memory.caches.policies.base import known_counts, most_used
from moesim.memory.caches.policies.frequency_static import FrequencyStatic
from moesim.memory.caches.ranking import cache_policies
from moesim.memory.demand import Demand


@cache_policies.register("prompt_static")
@dataclass(frozen=True)
class PromptStatic(FrequencyStatic):
    """Holds the experts used most in the prompt (without one, in earlier traffic) while a request decodes.

    A prompt that is computed on the device streams all experts there, so placing them costs nothing more.
    """

    def initial(self, demand: Demand, slots: NDArray[np.int64]) -> NDArray[np.bool_]:
        """The most used experts of each row."""
        counts = known_counts(demand) if demand.prompt_counts is None else demand.prompt_counts
        return most_used(counts, slots)
