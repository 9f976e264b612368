"""Numbering the ranks of a placement so that few experts move.

Ranks are alike, so which of them holds which set of experts does not change any rank load. It
changes how many weights must be loaded to get there from the placement before.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moesim.placement.placed import Floats, Ints, Placement
from moesim.placement.problem import Problem
from moesim.placement.registry import Solution


def renumbered(placement: Placement, before: Placement, ranks_per_node: int | None = None) -> Placement:
    """The same sets of experts, on ranks that already hold many of them.

    Layer by layer, the pair of a set and a rank with most experts in common is fixed first, then
    sets of two ranks are exchanged while that keeps more experts in place. Not always the best
    numbering, but never worse than the one given.

    Parameters
    ----------
    placement, before : Placement
        New and present placement, of the same layers, experts and ranks.
    ranks_per_node : int, optional
        Sets do not leave their node, whose traffic would change; None when nodes do not matter.

    Returns
    -------
    Placement
        Equal rank loads up to the numbering of ranks.
    """
    ranks = placement.num_ranks
    common = np.matmul(
        placement.resident.astype(np.float64).transpose(0, 2, 1), before.resident.astype(np.float64)
    )
    node = np.arange(ranks) // (ranks_per_node or ranks)
    common[:, node[:, None] != node[None, :]] = -np.inf
    rank_of_set = _exchanged(common, _greedy(common))
    given = np.tile(np.arange(ranks), (placement.num_layers, 1))
    kept, kept_now = _kept(common, rank_of_set), _kept(common, given)
    rank_of_set = np.where((kept > kept_now)[:, None], rank_of_set, given)
    set_of_rank = np.argsort(rank_of_set, axis=1)[:, :, None]

    source = (set_of_rank * placement.slots_per_rank + np.arange(placement.slots_per_rank)).reshape(
        placement.num_layers, -1
    )
    experts = np.take_along_axis(placement.physical_to_logical, source, axis=1)
    split = None if placement.split is None else np.take_along_axis(placement.split, source, axis=1)
    return Placement(experts, placement.num_experts, ranks, split)


def _greedy(common: Floats) -> Ints:
    """Rank of each set, ``(layers, ranks)``; ties go to the lower set and rank."""
    layers, ranks, _ = common.shape
    left = common.copy()
    every = np.arange(layers)
    rank_of_set = np.zeros((layers, ranks), np.int64)
    for _ in range(ranks):
        chosen, rank = np.divmod(left.reshape(layers, -1).argmax(axis=1), ranks)
        rank_of_set[every, chosen] = rank
        left[every, chosen, :] = -np.inf
        left[every, :, rank] = -np.inf
    return rank_of_set


def _exchanged(common: Floats, rank_of_set: Ints) -> Ints:
    """Rank of each set after the best exchanges of two; every exchange keeps at least one more expert."""
    layers, ranks, _ = common.shape
    best = rank_of_set.copy()
    active = np.arange(layers)
    while active.size:
        rows = np.take_along_axis(common[active], best[active][:, None, :].repeat(ranks, axis=1), axis=2)
        own = np.diagonal(rows, axis1=1, axis2=2)
        gain = (rows + rows.transpose(0, 2, 1) - own[:, :, None] - own[:, None, :]).reshape(active.size, -1)
        one, two = np.divmod(gain.argmax(axis=1), ranks)
        gains = gain.max(axis=1) > 0
        active, one, two = active[gains], one[gains], two[gains]
        best[active, one], best[active, two] = best[active, two], best[active, one]
    return best


def _kept(common: Floats, rank_of_set: Ints) -> Ints:
    return np.asarray(np.take_along_axis(common, rank_of_set[:, :, None], axis=2).sum(axis=(1, 2)), np.int64)


def renumbered_solution(solution: Solution, before: Placement, problem: Problem) -> Solution:
    """A solution whose ranks are numbered so that few experts move, where ranks are alike to its method.

    They are not where speeds or slots differ, nor to a method with an objective of its own (which
    may be about ways between ranks).
    """
    slots = problem.capacity
    is_alike = problem.speeds is None and solution.own is None and bool((slots == slots[0, 0]).all())
    if not is_alike or before.slots_per_rank != solution.placement.slots_per_rank:
        return solution
    return replace(solution, placement=renumbered(solution.placement, before, problem.ranks_per_node))
