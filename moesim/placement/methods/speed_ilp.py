"""Ranks of different speed: fast ones take more tokens, so that all are done together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.placement.assignment import Assignment
from moesim.placement.bounds import best_bound
from moesim.placement.layered import Effort, assigned
from moesim.placement.local_search import MAX_STEPS
from moesim.placement.location_search import Copies
from moesim.placement.problem import Problem
from moesim.placement.registry import Solution, placement_methods
from moesim.placement.scatter_search import scatter_descend
from moesim.placement.start import balanced


@placement_methods.register("speed_ilp")
@dataclass(frozen=True)
class SpeedIlp(Effort):
    """Smallest time of the rank that is done last, for ranks that differ in speed and in slots.

    Packing by time, exchanges between any two ranks, then the integer program. Without speeds in the
    problem all ranks are alike, and unequal slots are what is left of the question.

    References
    ----------
    .. [1] "GEM", arXiv:2605.19945: slower GPUs get less load (there by search, for stragglers).
    """

    def solve(self, problem: Problem, rng: np.random.Generator) -> Solution:
        """Loads and bounds are those of a rank of mean speed."""
        copies = Copies.of(balanced(problem, rng), problem.capacity)
        for layer, rank in enumerate(copies.rank):
            weights = copies.spread(layer, problem.loads[layer][:, None]).T
            copies.rank[layer] = scatter_descend(rank, weights, problem.relative_speeds, max_steps=MAX_STEPS)
        bound = best_bound(problem)

        def layer_of(index: int) -> Assignment:
            return Assignment(
                np.zeros((0, 0), np.int64),
                problem.loads[index][None],
                np.ones(1),
                problem.capacity[index],
                problem.relative_speeds,
                bound[index : index + 1],
            )

        found = assigned(problem, copies.placement(), layer_of, lambda layer: float(layer.bounds[0]), self)
        # the program keeps the numbers of copies, so with replicas its bound is not one of the layer
        proven = found.bounds if problem.num_replicas == 0 else bound
        is_optimal = bool((found.values <= proven * (1 + self.gap_fraction)).all())
        return Solution(found.placement, proven, is_optimal, found.notes)
