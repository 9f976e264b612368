"""The best balance that few moves away from the present placement can reach."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from moesim.placement.assignment import Assignment
from moesim.placement.bounds import best_bound
from moesim.placement.layered import Effort, assigned
from moesim.placement.move_search import improve_within
from moesim.placement.placed import Placement
from moesim.placement.problem import Problem
from moesim.placement.registry import Solution, placement_methods


@placement_methods.register("migration_ilp")
@dataclass(frozen=True)
class MigrationIlp(Effort):
    """Smallest largest rank load when ranks may load only some experts anew.

    Exchanges of copies and re-dedicated replicas are searched within the budget of each layer, then
    the integer program improves where the copies live.

    Parameters
    ----------
    max_moved_fraction : float
        Experts that ranks may load in a layer, over the layer's slots. [-]
    """

    needs: ClassVar[tuple[str, ...]] = ("start",)

    max_moved_fraction: Annotated[float, Field(ge=0, le=1)] = 0.1

    def solve(self, problem: Problem, rng: np.random.Generator) -> Solution:
        """Needs the problem's present placement."""
        before: Placement = problem.needed("start", "migration_ilp")
        budgets = np.floor(self.max_moved_fraction * problem.capacity.sum(axis=1)).astype(np.int64)
        speeds = problem.relative_speeds
        rows = before.physical_to_logical.reshape(problem.num_layers, problem.num_ranks, -1).copy()
        for layer in range(problem.num_layers):
            rows[layer] = improve_within(problem.loads[layer], rows[layer], speeds, int(budgets[layer]))
        searched = Placement(rows.reshape(problem.num_layers, -1), problem.num_experts, problem.num_ranks)
        bound = best_bound(problem)

        def layer_of(index: int) -> Assignment:
            return Assignment(
                np.zeros((0, 0), np.int64),
                problem.loads[index][None],
                np.ones(1),
                before.rank_slots[index],
                speeds,
                bound[index : index + 1],
                before=before.resident[index],
                max_moved=int(budgets[index]),
            )

        found = assigned(problem, searched, layer_of, lambda layer: float(layer.bounds[0]), self)
        moved = found.placement.moved_experts(before)
        notes = (f"{moved} experts move, {int(budgets.sum())} may", *found.notes)
        return Solution(found.placement, bound, notes=notes)
