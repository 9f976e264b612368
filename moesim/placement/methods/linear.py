"""Consecutive experts on consecutive ranks: what engines start with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.placement.problem import Placement, Problem
from moesim.placement.registry import Solution, placement_methods


@placement_methods.register("linear")
@dataclass(frozen=True)
class Linear:
    """Slot ``i`` holds expert ``i mod experts``; the traffic is not looked at.

    References
    ----------
    .. [1] vLLM, initial physical-to-logical map of its expert-parallel load balancer: the experts
       in order, then redundant slot ``i`` holds expert ``i mod experts``.
    """

    def solve(self, problem: Problem, rng: np.random.Generator) -> Solution:
        """The same row in every layer."""
        row = np.arange(problem.num_slots) % problem.num_experts
        experts = np.tile(row, (problem.num_layers, 1))
        return Solution(Placement(experts, problem.num_experts, problem.num_ranks))
