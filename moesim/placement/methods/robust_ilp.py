"""Balance of single batches: an integer program with one largest load a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from moesim.placement.assignment import Assignment
from moesim.placement.layered import Effort, assigned
from moesim.placement.location_search import Copies
from moesim.placement.placed import Floats, Placement
from moesim.placement.problem import Problem
from moesim.placement.registry import Own, Solution, placement_methods
from moesim.placement.scatter_search import scatter_descend
from moesim.placement.start import balanced

EFFORT = 20_000_000
"""Exchanges times batches that a layer's search looks at."""


@placement_methods.register("robust_ilp")
@dataclass(frozen=True)
class RobustIlp(Effort):
    """Smallest largest rank load of a batch, in the mean over the problem's batches.

    Copies are those of the balanced placement; where they live is searched by exchanges that look at
    every batch. Layers of at most ``max_variables`` are then given to the integer program; on larger
    ones it finds nothing better in minutes and only raises the bound.

    The sum over all batches counts as one more batch of price ``sum_weight``, so that few batches are
    not learnt by heart.

    Parameters
    ----------
    sum_weight : float
        Price of the largest rank load of all traffic (scaled to one batch), in batches. [-]
    """

    needs: ClassVar[tuple[str, ...]] = ("batch_loads",)

    max_nodes: Annotated[int, Field(ge=1)] = 20
    max_variables: Annotated[int, Field(ge=0)] = 64
    sum_weight: Annotated[float, Field(ge=0)] = 4.0

    def solve(self, problem: Problem, rng: np.random.Generator) -> Solution:
        """Needs the problem's batch loads; deterministic unless a time limit strikes."""
        scenarios, prices = self._scenarios(problem)
        start = balanced(problem, rng)
        searched = self._searched(problem, start, scenarios, prices)

        def layer_of(index: int) -> Assignment:
            loads = scenarios[:, index]
            return Assignment(
                np.zeros((0, 0), np.int64),
                loads,
                prices,
                problem.capacity[index],
                problem.relative_speeds,
                loads.sum(axis=1) / problem.num_ranks,
            )

        found = assigned(problem, searched, layer_of, lambda layer: float(prices @ layer.bounds), self)
        own = Own(
            "largest_rank_load_of_batches",
            "tokens",
            float(found.values.sum()),
            float(found.bounds.sum()),
            "mean, integer program",
        )
        return Solution(found.placement, notes=found.notes, own=own)

    def _scenarios(self, problem: Problem) -> tuple[Floats, Floats]:
        """Batches and the scaled sum, ``(scenarios, layers, experts)``, and their prices (sum one)."""
        batches: Floats = problem.needed("batch_loads", "robust_ilp")
        total = batches.sum() / max(len(batches), 1)
        scale = total / max(float(problem.loads.sum()), 1e-300)
        loads = np.concatenate([batches, problem.loads[None] * scale])
        prices = np.append(np.ones(len(batches)), self.sum_weight)
        return loads, prices / prices.sum()

    def _searched(self, problem: Problem, start: Placement, loads: Floats, prices: Floats) -> Placement:
        copies = Copies.of(start, problem.capacity)
        # a mean with prices is a plain mean of loads scaled by them
        priced = loads * (prices * len(prices))[:, None, None]
        for layer, rank in enumerate(copies.rank):
            weights = copies.spread(layer, priced[:, layer].T).T
            steps = EFFORT // (len(prices) * rank.size**2)
            copies.rank[layer] = scatter_descend(rank, weights, problem.relative_speeds, max_steps=steps)
        return copies.placement()
