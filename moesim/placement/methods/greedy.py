"""Replicate what is hot, then longest-processing-time packing that keeps copies apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.placement.packing import packed
from moesim.placement.placed import Placement
from moesim.placement.problem import Problem
from moesim.placement.registry import Solution, placement_methods


@placement_methods.register("greedy")
@dataclass(frozen=True)
class Greedy:
    """Replicas go to the expert with most tokens per copy; copies go, heaviest first, to the lightest rank.

    Unlike ``eplb``, a rank receives a second copy of an expert only if every rank with room has one;
    and ranks may differ in slots and in speed (then the rank that would be done first takes a copy).

    References
    ----------
    .. [1] R. L. Graham, "Bounds on multiprocessing timing anomalies," SIAM J. Appl. Math. 17, 1969.
       doi:10.1137/0117039 (longest processing time first, here with a limit of items per rank).
    """

    def solve(self, problem: Problem, rng: np.random.Generator) -> Solution:
        """Deterministic: ties go to the lower expert and the lower rank."""
        experts = packed(problem)
        return Solution(Placement(experts, problem.num_experts, problem.num_ranks))
