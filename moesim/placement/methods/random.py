"""Chance: what a placement is worth that knows nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.placement.problem import Placement, Problem
from moesim.placement.registry import Solution, placement_methods


@placement_methods.register("random")
@dataclass(frozen=True)
class Random:
    """Experts in random slots; replicas are of random experts, none chosen twice before all were once."""

    def solve(self, problem: Problem, rng: np.random.Generator) -> Solution:
        """Another draw in every layer."""
        rounds = -(-problem.num_slots // problem.num_experts)
        experts = np.empty((problem.num_layers, problem.num_slots), np.int64)
        for layer in range(problem.num_layers):
            decks = [rng.permutation(problem.num_experts) for _ in range(rounds)]
            experts[layer] = rng.permutation(np.concatenate(decks)[: problem.num_slots])
        return Solution(Placement(experts, problem.num_experts, problem.num_ranks))
