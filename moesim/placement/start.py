"""The balanced placement that other methods start from, and its copies of every expert."""

from __future__ import annotations

import numpy as np

from moesim.placement.evaluate import evaluate
from moesim.placement.methods.eplb_swaps import EplbSwaps
from moesim.placement.packing import packed
from moesim.placement.placed import Placement
from moesim.placement.problem import Problem


def balanced(problem: Problem, rng: np.random.Generator) -> Placement:
    """Ranks of nearly equal load (or equal time, where speeds differ), whatever the slots.

    EPLB with swaps where ranks are alike, replication and packing where they are not.
    """
    is_equal = problem.rank_slots is None or (problem.rank_slots == problem.slots_per_rank).all()
    packing = Placement(packed(problem), problem.num_experts, problem.num_ranks)
    if not is_equal or problem.speeds is not None:
        return packing
    swapped = EplbSwaps(mode="global").solve(problem, rng).placement
    peaks = [evaluate(problem.loads, one).largest for one in (swapped, packing)]
    rows = np.where((peaks[0] <= peaks[1])[:, None], swapped.physical_to_logical, packing.physical_to_logical)
    return Placement(rows, problem.num_experts, problem.num_ranks)
