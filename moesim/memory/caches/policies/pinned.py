"""Some experts never leave; the rest of the slots is least recently used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from moesim.errors import InputError
from moesim.memory.caches.policies.base import known_counts, most_used
from moesim.memory.caches.ranking import Ids, Ranking, Rows, Worth, cache_policies
from moesim.memory.demand import Demand

_ABOVE = 2.0**40
"""More than any time of last use."""


class _Pinned(Ranking):
    def __init__(self, demand: Demand, pinned: NDArray[np.bool_]) -> None:
        super().__init__(demand)
        self.bonus = np.zeros_like(self.last_use)
        self.bonus[:, :-1][pinned] = _ABOVE

    def worth(self, rows: Rows, ids: Ids) -> Worth:
        return self.last_use[rows, ids] + self.bonus[rows, ids]


@cache_policies.register("pinned")
@dataclass(frozen=True)
class Pinned:
    """Pins the pairs (layer, expert) of ``experts`` and the ``most_used`` experts of each layer.

    Pinned experts are there from the start and give way only to a pass that needs their slots. Super
    experts (a few per model whose loss ruins it) are such a list.
    """

    experts: tuple[tuple[int, int], ...] = ()
    most_used: Annotated[int, Field(ge=0)] = 0
    bypasses: ClassVar[bool] = False

    def ranking(self, demand: Demand, rng: np.random.Generator) -> Ranking:
        """Time of last use, above it what is pinned."""
        del rng
        return _Pinned(demand, self._mask(demand))

    def initial(self, demand: Demand, slots: NDArray[np.int64]) -> NDArray[np.bool_]:
        """What is pinned."""
        del slots
        return self._mask(demand)

    def _mask(self, demand: Demand) -> NDArray[np.bool_]:
        rows, experts = demand.num_layers, demand.num_experts
        per_layer = experts // demand.layers_per_row
        per_row = np.full(rows, self.most_used * demand.layers_per_row, np.int64)
        mask = most_used(known_counts(demand), per_row)
        for layer, expert in self.experts:
            row, offset = (0, layer * per_layer) if demand.layers_per_row > 1 else (layer, 0)
            layers = max(rows, demand.layers_per_row)
            if not (0 <= layer < layers and 0 <= expert < per_layer):
                accepted = f"layers 0 to {layers - 1} and experts 0 to {per_layer - 1}"
                raise InputError.at("memory.cache.experts", (layer, expert), accepted)
            mask[row, offset + expert] = True
        return mask
