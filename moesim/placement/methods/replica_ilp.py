"""Where replicas are worth most: more slots for layers with a hot expert, fewer for even ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from moesim.errors import InputError
from moesim.placement.bounds import hottest_bound, mean_bound
from moesim.placement.milp import SOLVER_TOLERANCE, Limits, minimise, new_model, total, variable
from moesim.placement.placed import EMPTY, Floats, Ints, Placement
from moesim.placement.problem import Problem
from moesim.placement.registry import Own, Solution, placement_methods
from moesim.placement.start import balanced

SLOT_WORTH = 1e-5
"""Part of the hottest layer's load that a slot is worth where it does not lower any bound."""


@placement_methods.register("replica_ilp")
@dataclass(frozen=True)
class ReplicaIlp:
    """The problem's slots dealt out over layers anew, then every layer balanced with what it got.

    For each layer and each number of slots the smallest possible load of the hottest copy is known
    exactly (it is a bound that needs no placement); an integer program chooses the numbers whose sum of
    bounds is least. All ranks of a layer have the same number of slots; layers differ.

    Parameters
    ----------
    max_slots_per_rank : int, optional
        Widest layer; default twice the problem's slots a rank. [-]
    time_limit_s : float
        Wall clock of the integer program. [s]

    References
    ----------
    .. [1] "CRAFT", arXiv:2603.28768: replicas by benefit per byte, layer by layer.
    """

    max_slots_per_rank: Annotated[int, Field(ge=1)] | None = None
    time_limit_s: Annotated[float, Field(gt=0)] = 60.0

    def solve(self, problem: Problem, rng: np.random.Generator) -> Solution:
        """As many slots over all layers as the problem has."""
        problem.check_equal_slots("replica_ilp")
        least = -(-problem.num_experts // problem.num_ranks)
        widest = min(self.max_slots_per_rank or 2 * problem.slots_per_rank, problem.num_experts)
        if widest < problem.slots_per_rank:
            accepted = f"at least the problem's {problem.slots_per_rank}"
            raise InputError.at("max_slots_per_rank", widest, accepted)
        options = np.arange(least, widest + 1)
        curves = _curves(problem, options)
        chosen, bound = self._chosen(problem, options, curves)
        rows = _balanced_with(problem, options[chosen], rng)
        placement = Placement(rows, problem.num_experts, problem.num_ranks)
        served = np.matmul(problem.loads[:, None, :], placement.rank_share)[:, 0].max(axis=1)
        own = Own(
            "largest_rank_load_for_all_slots", "tokens", float(served.sum()), bound, "bounds of every layer"
        )
        spread = f"{options[chosen].min()} to {options[chosen].max()} slots a rank, layer by layer"
        return Solution(placement, notes=(spread,), own=own)

    def _chosen(self, problem: Problem, options: Ints, curves: Floats) -> tuple[Ints, float]:
        """Option of each layer, and the least sum of bounds that any choice has. [tokens]"""
        budget = problem.num_layers * problem.slots_per_rank
        scale = max(float(curves[:, 0].max()), 1e-300)
        model, picks, start = new_model("replicas"), {}, {}
        for (layer, option), _ in np.ndenumerate(curves):
            name = f"x{layer}_{option}"
            picks[layer, option] = variable(model, name, 0, 1, whole=True)
            start[name] = float(options[option] == problem.slots_per_rank)
        # of equal sums the one that leaves no slot unused: bounds do not see that room helps packing
        worth = {at: float(curves[at]) / scale - SLOT_WORTH * int(options[at[1]]) for at in picks}
        model += total([(pick, worth[at]) for at, pick in picks.items()])
        for layer in range(problem.num_layers):
            model += total([(picks[layer, option], 1) for option in range(len(options))]) == 1
        model += total([(pick, int(options[option])) for (_, option), pick in picks.items()]) <= budget
        outcome = minimise(model, Limits(self.time_limit_s, 10_000, 0.0), start)
        values = start if outcome.values is None else outcome.values
        grid = np.array([values[f"x{layer}_{option}"] for layer, option in picks]).reshape(curves.shape)
        least = outcome.dual_bound + SLOT_WORTH * problem.num_layers * int(options[0])
        return grid.argmax(axis=1), max(least * scale * (1 - SOLVER_TOLERANCE), 0.0)


def _curves(problem: Problem, options: Ints) -> Floats:
    """Bound of the largest rank load by layer and slots a rank, ``(layers, options)``. [tokens]"""
    mean = mean_bound(problem.loads, problem.num_ranks)
    columns = [
        np.maximum(
            mean,
            hottest_bound(
                problem.loads, problem.num_ranks, int(slots) * problem.num_ranks - problem.num_experts
            ),
        )
        for slots in options
    ]
    return np.stack(columns, axis=1)


def _balanced_with(problem: Problem, slots: Ints, rng: np.random.Generator) -> Ints:
    """Every layer balanced with its own number of slots a rank, in rows as wide as the widest."""
    widest = int(slots.max())
    held = np.full((problem.num_layers, problem.num_ranks, widest), EMPTY, np.int64)
    for number in np.unique(slots):
        rows = np.flatnonzero(slots == number)
        part = Problem(problem.loads[rows], problem.num_ranks, int(number))
        found = balanced(part, rng).physical_to_logical
        held[rows, :, :number] = found.reshape(len(rows), problem.num_ranks, -1)
    return held.reshape(problem.num_layers, -1)
