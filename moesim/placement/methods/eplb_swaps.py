"""EPLB, then pair swaps: within a fraction of a percent of the bound, in milliseconds a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from moesim.placement.bounds import best_bound
from moesim.placement.local_search import MAX_STEPS, swap_search
from moesim.placement.methods.eplb import eplb_map, is_hierarchical
from moesim.placement.placed import Placement
from moesim.placement.problem import Problem
from moesim.placement.registry import Solution, placement_methods


@placement_methods.register("eplb_swaps")
@dataclass(frozen=True)
class EplbSwaps:
    """EPLB improved by exchanging copies between ranks while that lowers the largest rank load.

    Never worse than ``eplb`` of the same mode: it starts there and only accepts what helps. When
    hierarchical, copies stay on their node.

    Parameters
    ----------
    mode : {'auto', 'hierarchical', 'global'}
        As for ``eplb``.
    max_steps : int
        Exchanges per layer at most. [-]
    """

    mode: Literal["auto", "hierarchical", "global"] = "auto"
    max_steps: Annotated[int, Field(ge=0)] = MAX_STEPS

    def solve(self, problem: Problem, rng: np.random.Generator) -> Solution:
        """Deterministic; the proven bound is the combinatorial one."""
        problem.check_equal_slots("eplb_swaps")
        hierarchical = is_hierarchical(problem, self.mode)
        experts = eplb_map(problem, hierarchical=hierarchical)
        start = Placement(experts, problem.num_experts, problem.num_ranks)
        weights = np.take_along_axis(problem.loads, start.physical_to_logical, axis=1) * start.slot_share
        nodes = problem.num_nodes if hierarchical else 1
        order, steps = swap_search(
            weights.reshape(problem.num_layers, problem.num_ranks, -1),
            np.arange(problem.num_ranks) * nodes // problem.num_ranks,
            best_bound(problem),
            max_steps=self.max_steps,
        )
        improved = np.take_along_axis(start.physical_to_logical, order, axis=1)
        placement = Placement(improved, problem.num_experts, problem.num_ranks)
        return Solution(placement, notes=(f"at most {steps} exchanges in a layer",))
