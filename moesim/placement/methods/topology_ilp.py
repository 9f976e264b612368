"""Hot experts on ranks that tokens reach cheaply: a linear cost under a cap on rank loads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from moesim.placement.affinity import capped
from moesim.placement.assignment import Assignment
from moesim.placement.evaluate import evaluate
from moesim.placement.layered import Effort, assigned
from moesim.placement.location_search import Copies, Costs, descend
from moesim.placement.placed import Floats
from moesim.placement.problem import Problem
from moesim.placement.registry import Own, Solution, placement_methods
from moesim.placement.start import balanced


@placement_methods.register("topology_ilp")
@dataclass(frozen=True)
class TopologyIlp(Effort):
    """Least token cost of the ways to the experts, every rank load under a cap.

    The traffic of an expert goes between its rank and the ranks that hold the tokens, whose mean cost
    is the problem's ``rank_costs``. Linear in the placement, so the program closes quickly.

    Parameters
    ----------
    slack_fraction : float
        Largest rank load allowed, above the mean; the balanced start is allowed in any case. [-]

    References
    ----------
    .. [1] D. Sivtsov et al., topology-driven expert placement, arXiv:2508.09229 (a linear assignment of
       experts to hosts by hops, weighted by measured load).
    """

    needs: ClassVar[tuple[str, ...]] = ("rank_costs",)

    slack_fraction: Annotated[float, Field(ge=0)] = 0.05

    def solve(self, problem: Problem, rng: np.random.Generator) -> Solution:
        """Needs the problem's rank costs."""
        rank_costs: Floats = problem.needed("rank_costs", "topology_ilp")
        start = balanced(problem, rng)
        largest = evaluate(problem.loads, start).largest
        caps = capped(problem.loads, problem.num_ranks, largest, self.slack_fraction)
        copies = Copies.of(start, problem.capacity)
        for layer, rank in enumerate(copies.rank):
            tokens = copies.spread(layer, problem.loads[layer][:, None])
            costs = Costs(tokens * rank_costs[layer])
            copies.rank[layer] = descend(rank, tokens[:, 0], costs, float(caps[layer]))

        def layer_of(index: int) -> Assignment:
            loads = problem.loads[index]
            per_copy = loads / start.copies[index]
            return Assignment(
                np.zeros((0, 0), np.int64),
                loads[None],
                np.zeros(1),
                problem.capacity[index],
                problem.relative_speeds,
                np.zeros(1),
                costs=per_copy[:, None] * rank_costs[index],
                caps=caps[index : index + 1],
            )

        found = assigned(problem, copies.placement(), layer_of, _cheapest, self)
        tokens_total = max(float(problem.loads.sum()), 1e-300)
        own = Own(
            "cost_per_token",
            "",
            float(found.values.sum()) / tokens_total,
            float(found.bounds.sum()) / tokens_total,
            "integer program under the cap",
        )
        return Solution(found.placement, notes=found.notes, own=own)


def _cheapest(layer: Assignment) -> float:
    """Cost without the cap: the heaviest copies in the cheapest slots."""
    assert layer.costs is not None
    copies = layer.counts.sum(axis=1)
    heaviest = int(layer.costs.max(axis=1).argmax())
    row = layer.costs[heaviest]
    if row.max() <= 0:
        return 0.0
    price = np.sort(np.repeat(row / row.max(), layer.capacity))
    weights = -np.sort(-np.repeat(layer.costs.max(axis=1), copies))
    return float(weights @ price[: weights.size]) * (1 - 1e-13)
