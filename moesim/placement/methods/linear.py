"""Consecutive experts on consecutive ranks: what engines start with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.placement.packing import filled_in_order
from moesim.placement.placed import Placement
from moesim.placement.problem import Problem
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
        """The same row in every layer with as many slots."""
        rows = [np.arange(slots) % problem.num_experts for slots in problem.capacity.sum(axis=1)]
        experts = filled_in_order(problem.capacity, rows)
        return Solution(Placement(experts, problem.num_experts, problem.num_ranks))
