"""The most popular experts, for good (Fiddler)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from moesim.memory.caches.policies.base import known_counts, most_used
from moesim.memory.caches.ranking import Ids, Ranking, Rows, Worth, cache_policies
from moesim.memory.demand import Demand


class _Fixed(Ranking):
    def worth(self, rows: Rows, ids: Ids) -> Worth:  # noqa: ARG002
        return np.zeros(ids.shape)


@cache_policies.register("frequency_static")
@dataclass(frozen=True)
class FrequencyStatic:
    """Holds the experts used most in earlier traffic (else in the trace itself) and never changes."""

    bypasses: ClassVar[bool] = True

    def ranking(self, demand: Demand, rng: np.random.Generator) -> Ranking:
        """All equal: a newcomer is never worth more than what is there."""
        del rng
        return _Fixed(demand)

    def initial(self, demand: Demand, slots: NDArray[np.int64]) -> NDArray[np.bool_]:
        """The most used experts of each row."""
        return most_used(known_counts(demand), slots)
