"""Chance: what a placement is worth that knows nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.placement.packing import filled_in_order
from moesim.placement.placed import Placement
from moesim.placement.problem import Problem
from moesim.placement.registry import Solution, placement_methods


@placement_methods.register("random")
@dataclass(frozen=True)
class Random:
    """Experts in random slots; replicas are of random experts, none chosen twice before all were once."""

    def solve(self, problem: Problem, rng: np.random.Generator) -> Solution:
        """Another draw in every layer."""
        rows = []
        for slots in problem.capacity.sum(axis=1):
            rounds = -(-int(slots) // problem.num_experts)
            decks = [rng.permutation(problem.num_experts) for _ in range(rounds)]
            rows.append(rng.permutation(np.concatenate(decks)[:slots]))
        experts = filled_in_order(problem.capacity, rows)
        return Solution(Placement(experts, problem.num_experts, problem.num_ranks))
