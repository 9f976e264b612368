"""Any experts, for good."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from moesim.evidence import rng_for
from moesim.memory.caches.policies.frequency_static import FrequencyStatic
from moesim.memory.caches.ranking import cache_policies
from moesim.memory.demand import Demand


@cache_policies.register("random_static")
@dataclass(frozen=True)
class RandomStatic(FrequencyStatic):
    """Holds experts drawn once and never changes: what an engine does that places them by number."""

    draw: Annotated[int, Field(ge=0)] = 0

    def initial(self, demand: Demand, slots: NDArray[np.int64]) -> NDArray[np.bool_]:
        """As many drawn experts in each row as it has slots."""
        keys = rng_for(self.draw, "memory/random_static").random((demand.num_layers, demand.num_experts))
        rank = np.argsort(np.argsort(keys, axis=1), axis=1)
        return np.asarray(rank < slots[:, None])
