"""Experts dealt to ranks like cards."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.placement.placed import Placement
from moesim.placement.problem import Problem
from moesim.placement.registry import Solution, placement_methods


@placement_methods.register("round_robin")
@dataclass(frozen=True)
class RoundRobin:
    """Copy ``i`` is of expert ``i mod experts`` and lives on rank ``i mod ranks``."""

    def solve(self, problem: Problem, rng: np.random.Generator) -> Solution:
        """The same row in every layer; the traffic is not looked at."""
        problem.check_equal_slots("round_robin")
        row = np.arange(problem.num_slots) % problem.num_experts
        dealt = row.reshape(problem.slots_per_rank, problem.num_ranks).T.ravel()
        experts = np.tile(dealt, (problem.num_layers, 1))
        return Solution(Placement(experts, problem.num_experts, problem.num_ranks))
