"""Methods beside each other: same traffic, same bound, same held-out traffic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from moesim.placement.bounds import best_bound
from moesim.placement.evaluate import Evaluation, evaluate, gap_fraction
from moesim.placement.placed import Floats, Placement
from moesim.placement.problem import Problem
from moesim.placement.registry import Solution


@dataclass(frozen=True)
class Judged:
    """What one placement is worth.

    Attributes
    ----------
    solution : Solution
        The placement and its method's remarks.
    fit, held_out : Evaluation
        Under the traffic it was made for, and under traffic it has not seen.
    batches : Evaluation
        Under single batches of the unseen traffic.
    moved_experts : int
        Expert weights that ranks must load to get there from the start. [-]
    """

    solution: Solution
    fit: Evaluation
    held_out: Evaluation
    batches: Evaluation
    moved_experts: int


@dataclass(frozen=True, eq=False)
class Comparison:
    """Placements judged together.

    Attributes
    ----------
    before : Judged
        The start: where engines put experts by themselves, with the same slots.
    methods : mapping of name to Judged
        In the order they were asked for.
    bound : ndarray of float64, ``(layers,)``
        Best lower bound of the largest rank load by any means. [tokens]
    """

    before: Judged
    methods: Mapping[str, Judged]
    bound: Floats

    @property
    def best(self) -> str:
        """Method with the smallest objective on the fit part; the first of equals."""
        return min(self.methods, key=lambda name: self.methods[name].fit.objective)

    def summary(self, judged: Judged) -> dict[str, Any]:
        """Plain numbers of one method."""
        return {
            "split": judged.solution.split_rule,
            "objective": judged.fit.objective,
            "gap_fraction": gap_fraction(judged.fit.objective, float(self.bound.sum())),
            "imbalance_ratio_fit": judged.fit.imbalance_ratio,
            "imbalance_ratio_held_out": judged.held_out.imbalance_ratio,
            "imbalance_ratio_batch": judged.batches.imbalance_ratio,
            "moved_experts": judged.moved_experts,
            "is_optimal": judged.solution.is_optimal,
            "notes": list(judged.solution.notes),
        }

    def layers(self, name: str) -> list[dict[str, Any]]:
        """Plain numbers of every layer under one method."""
        after, before = self.methods[name], self.before
        return [
            {
                "objective": float(after.fit.largest[i]),
                "lower_bound": float(self.bound[i]),
                "gap_fraction": gap_fraction(float(after.fit.largest[i]), float(self.bound[i])),
                "imbalance_ratio_fit_before": float(before.fit.imbalance[i]),
                "imbalance_ratio_fit_after": float(after.fit.imbalance[i]),
                "imbalance_ratio_held_out_before": float(before.held_out.imbalance[i]),
                "imbalance_ratio_held_out_after": float(after.held_out.imbalance[i]),
            }
            for i in range(len(self.bound))
        ]


def compare(
    problem: Problem,
    held_out: Floats,
    held_out_batches: Floats,
    start: Solution,
    solutions: Mapping[str, Solution],
) -> Comparison:
    """Solutions of one problem, judged.

    Parameters
    ----------
    problem : Problem
        What was solved.
    held_out : ndarray, ``(layers, experts)``
        Traffic that no method has seen. [tokens]
    held_out_batches : ndarray, ``(batches, layers, experts)``
        Batches of it. [tokens]
    start : Solution
        The placement before.
    solutions : mapping of name to Solution
        At least one.
    """

    def judged(solution: Solution, origin: Placement) -> Judged:
        placed = solution.placement
        return Judged(
            solution,
            evaluate(problem.loads, placed),
            evaluate(held_out, placed),
            evaluate(held_out_batches, placed),
            placed.moved_experts(origin),
        )

    # a bound for any split holds for the even one too, but not the other way round
    has_shares = any(solution.split_rule == "solved" for solution in solutions.values())
    bound = best_bound(problem)
    for solution in solutions.values():
        if solution.lower_bound is not None and (solution.split_rule == "solved" or not has_shares):
            bound = np.maximum(bound, solution.lower_bound)
    methods = {name: judged(solution, start.placement) for name, solution in solutions.items()}
    return Comparison(judged(start, start.placement), methods, bound)
