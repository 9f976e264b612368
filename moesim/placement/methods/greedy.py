"""Replicate what is hot, then longest-processing-time packing that keeps copies apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.placement.packing import pack, replicate
from moesim.placement.problem import Placement, Problem
from moesim.placement.registry import Solution, placement_methods


@placement_methods.register("greedy")
@dataclass(frozen=True)
class Greedy:
    """Replicas go to the expert with most tokens per copy; copies go, heaviest first, to the lightest rank.

    Unlike ``eplb``, a rank receives a second copy of an expert only if every rank with room has one.

    References
    ----------
    .. [1] R. L. Graham, "Bounds on multiprocessing timing anomalies," SIAM J. Appl. Math. 17, 1969.
       doi:10.1137/0117039 (longest processing time first, here with a limit of items per rank).
    """

    def solve(self, problem: Problem, rng: np.random.Generator) -> Solution:
        """Deterministic: ties go to the lower expert and the lower rank."""
        items, copies = replicate(problem.loads, problem.num_slots)
        weights = np.take_along_axis(problem.loads / copies, items, axis=1)
        places = pack(weights, problem.num_ranks, items)
        experts = np.take_along_axis(items, places, axis=1)
        return Solution(Placement(experts, problem.num_experts, problem.num_ranks))
