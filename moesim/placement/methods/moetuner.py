"""MoETuner's two stages: equal groups of balanced load, then groups to ranks by their traffic."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import permutations
from typing import ClassVar

import numpy as np

from moesim.placement.assignment import Assignment
from moesim.placement.layered import Effort, assigned
from moesim.placement.local_search import LEAST_GAIN
from moesim.placement.location_search import Copies
from moesim.placement.placed import Floats, Ints
from moesim.placement.problem import Problem
from moesim.placement.registry import Own, Solution, placement_methods
from moesim.placement.start import balanced

EXACT_RANKS = 5
"""Ranks up to which all numberings of a layer are tried against all of the next."""
SWEEPS = 20
"""Sweeps over the layers beyond that, at most."""


@placement_methods.register("moetuner")
@dataclass(frozen=True)
class MoeTuner(Effort):
    """Stage 1 groups the experts of each layer; stage 2 numbers the groups.

    Stage 1: equal groups of nearly equal load (search, then the integer program of the largest load).
    Stage 2: the sum over neighbouring layers of the largest ``tokens * link cost`` of any pair of ranks
    is minimised, exactly up to five ranks (a shortest path over numberings, layer by layer), by
    exchanges beyond.

    References
    ----------
    .. [1] S. Go and D. Mahajan, "MoETuner: Optimized Mixture of Expert Serving with Balanced Expert
       Placement and Token Routing," arXiv:2502.06643; objective of stage 2 as reported there.
    """

    needs: ClassVar[tuple[str, ...]] = ("transitions",)

    def solve(self, problem: Problem, rng: np.random.Generator) -> Solution:
        """Needs the problem's transitions."""
        transitions: Floats = problem.needed("transitions", "moetuner")
        mean = problem.loads.sum(axis=1) / problem.num_ranks

        def layer_of(index: int) -> Assignment:
            return Assignment(
                np.zeros((0, 0), np.int64),
                problem.loads[index][None],
                np.ones(1),
                problem.capacity[index],
                problem.relative_speeds,
                mean[index : index + 1],
            )

        grouped = assigned(problem, balanced(problem, rng), layer_of, lambda one: float(one.bounds[0]), self)
        copies = Copies.of(grouped.placement, problem.capacity)
        flows = [
            copies.shares(layer).T @ counts @ copies.shares(layer + 1)
            for layer, counts in enumerate(transitions)
        ]
        exact = problem.num_ranks <= EXACT_RANKS
        names = (_numbered if exact else _exchanged)(flows, problem.distances)
        renamed = replace(
            copies, rank=[name[rank] for name, rank in zip(names, copies.rank, strict=True)]
        ).placement()
        value = sum(
            _largest(flow, problem.distances, names[layer], names[layer + 1])
            for layer, flow in enumerate(flows)
        )
        own = Own(
            "largest_pair_of_ranks",
            "tokens",
            value,
            value if exact else None,
            "all numberings of these groups",
        )
        end = "numbering of groups proven best" if exact else "numbering of groups by exchanges"
        return Solution(renamed, notes=(*grouped.notes, end), own=own)


def _largest(flow: Floats, distances: Floats, one: Ints, two: Ints) -> float:
    """Largest cost of a pair when groups have ranks ``one`` and ``two``. [tokens]"""
    return float((flow * distances[np.ix_(one, two)]).max())


def _numbered(flows: list[Floats], distances: Floats) -> list[Ints]:
    """Rank of every group of each layer: the shortest path over numberings of neighbouring layers."""
    names = np.array(list(permutations(range(len(distances)))))
    cost, came = np.zeros(len(names)), []
    for flow in flows:
        steps = np.empty((len(names), len(names)))
        for number, one in enumerate(names):
            steps[number] = (flow * distances[one[:, None], names[:, None, :]]).max(axis=(1, 2))
        whole = cost[:, None] + steps
        came.append(whole.argmin(axis=0))
        cost = whole.min(axis=0)
    best = int(cost.argmin())
    path = [best]
    for back in reversed(came):
        path.append(int(back[path[-1]]))
    return [names[number] for number in reversed(path)]


def _exchanged(flows: list[Floats], distances: Floats) -> list[Ints]:
    """The same by exchanges of two ranks in one layer, until none helps."""
    ranks = len(distances)
    names = [np.arange(ranks) for _ in range(len(flows) + 1)]

    def around(layer: int, name: Ints) -> float:
        value = 0.0
        if layer > 0:
            value += _largest(flows[layer - 1], distances, names[layer - 1], name)
        if layer < len(flows):
            value += _largest(flows[layer], distances, name, names[layer + 1])
        return value

    for _ in range(SWEEPS):
        improved = False
        for layer in range(len(names)):
            now = around(layer, names[layer])
            for one in range(ranks):
                for two in range(one):
                    tried = names[layer].copy()
                    tried[[one, two]] = tried[[two, one]]
                    after = around(layer, tried)
                    if after < now * (1 - LEAST_GAIN):
                        names[layer], now, improved = tried, after, True
        if not improved:
            break
    return names
