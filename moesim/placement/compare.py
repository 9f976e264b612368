"""Methods beside each other: same traffic, same bound, same held-out traffic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from moesim.evidence import rng_for
from moesim.placement.affinity import same_rank_share
from moesim.placement.bounds import best_bound
from moesim.placement.dispatch import Dispatched, dispatch
from moesim.placement.evaluate import Evaluation, evaluate, gap_fraction
from moesim.placement.placed import Floats, Placement
from moesim.placement.problem import Problem
from moesim.placement.registry import Solution
from moesim.placement.split_registry import splits
from moesim.placement.start import balanced
from moesim.placement.unseen import Unseen, imbalance_interval, interval

TAIL = 0.95
"""Batches at most this bad are the ordinary ones."""


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
    domains : mapping of str to Evaluation
        Under traffic of other domains.
    dispatched : Dispatched
        Single tokens of the unseen traffic, with the even split.
    same_rank_share : float
        Next-layer pairs of the unseen traffic that are on one rank. [-]
    regret_fraction : float
        Largest rank loads of the unseen traffic, above those of a placement that was balanced on it. [-]
    held_out_interval, batch_interval : pair of float
        Where the imbalance lies when requests, or batches, are drawn anew (80 % of draws). [-]
    moved_experts : int
        Expert weights that ranks must load to get there from the start. [-]
    """

    solution: Solution
    fit: Evaluation
    held_out: Evaluation
    batches: Evaluation
    domains: Mapping[str, Evaluation]
    dispatched: Dispatched
    same_rank_share: float
    regret_fraction: float
    held_out_interval: tuple[float, float]
    batch_interval: tuple[float, float]
    moved_experts: int

    @property
    def batch_p95(self) -> float:
        """Imbalance that 95 % of single batches and layers stay below. [-]"""
        return float(np.quantile(self.batches.imbalance, TAIL))


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
        Best lower bound of the largest rank load by any means, with the problem's slots. [tokens]
    loads : ndarray of float64, ``(layers, experts)``
        The traffic it is about. [tokens]
    """

    before: Judged
    methods: Mapping[str, Judged]
    bound: Floats
    loads: Floats

    def bound_of(self, judged: Judged) -> Floats:
        """Lower bound for the slots that a placement has, ``(layers,)``. [tokens]"""
        if self.has_given_slots(judged):
            return self.bound
        slots = judged.solution.placement.rank_slots
        return best_bound(Problem.with_rank_slots(self.loads, slots))

    @property
    def best(self) -> str:
        """Method with the smallest objective on the fit part; the first of equals.

        Methods that dealt the slots out anew are chosen only when there is no other.
        """
        names = [name for name in self.methods if self.has_given_slots(self.methods[name])]
        return min(names or self.methods, key=lambda name: self.methods[name].fit.objective)

    def has_given_slots(self, judged: Judged) -> bool:
        """Whether a placement has the slots that the bound is about."""
        slots = judged.solution.placement.rank_slots
        return bool((slots == self.before.solution.placement.rank_slots).all())

    def summary(self, judged: Judged) -> dict[str, Any]:
        """Plain numbers of one method."""
        sent = judged.dispatched
        own = judged.solution.own
        return {
            "split": judged.solution.split_rule,
            "objective": judged.fit.objective,
            "gap_fraction": gap_fraction(judged.fit.objective, float(self.bound_of(judged).sum())),
            "imbalance_ratio_fit": judged.fit.imbalance_ratio,
            "imbalance_ratio_held_out": judged.held_out.imbalance_ratio,
            "imbalance_ratio_held_out_interval": list(judged.held_out_interval),
            "imbalance_ratio_batch": judged.batches.imbalance_ratio,
            "imbalance_ratio_batch_interval": list(judged.batch_interval),
            "imbalance_ratio_batch_p95": judged.batch_p95,
            "imbalance_ratio_domains": {name: one.imbalance_ratio for name, one in judged.domains.items()},
            "regret_fraction": judged.regret_fraction,
            "ranks_per_token": sent.ranks_per_token,
            "nodes_per_token": sent.nodes_per_token,
            "cross_rank_sends_per_token": sent.cross_rank_tokens,
            "cross_node_sends_per_token": sent.cross_node_tokens,
            "same_rank_share": judged.same_rank_share,
            "moved_experts": judged.moved_experts,
            "is_optimal": judged.solution.is_optimal,
            "own_objective": None
            if own is None
            else {
                "name": own.name,
                "unit": own.unit,
                "value": own.value,
                "bound": own.bound,
                "bound_name": own.bound_name,
                "gap_fraction": own.gap_fraction,
            },
            "notes": list(judged.solution.notes),
        }

    def layers(self, name: str) -> list[dict[str, Any]]:
        """Plain numbers of every layer under one method."""
        after, before = self.methods[name], self.before
        bound = self.bound_of(after)
        return [
            {
                "objective": float(after.fit.largest[i]),
                "lower_bound": float(bound[i]),
                "gap_fraction": gap_fraction(float(after.fit.largest[i]), float(bound[i])),
                "imbalance_ratio_fit_before": float(before.fit.imbalance[i]),
                "imbalance_ratio_fit_after": float(after.fit.imbalance[i]),
                "imbalance_ratio_held_out_before": float(before.held_out.imbalance[i]),
                "imbalance_ratio_held_out_after": float(after.held_out.imbalance[i]),
            }
            for i in range(len(bound))
        ]


def compare(
    problem: Problem, unseen: Unseen, start: Solution, solutions: Mapping[str, Solution], *, seed: int = 0
) -> Comparison:
    """Solutions of one problem, judged.

    Parameters
    ----------
    problem : Problem
        What was solved.
    unseen : Unseen
        Traffic that no method has seen.
    start : Solution
        The placement before.
    solutions : mapping of name to Solution
        At least one.
    seed : int
        Of the resampling.
    """
    # a bound for any split holds for the even one too, but not the other way round
    has_shares = any(solution.split_rule == "solved" for solution in solutions.values())
    bound = best_bound(problem)
    for solution in solutions.values():
        if solution.lower_bound is not None and (solution.split_rule == "solved" or not has_shares):
            bound = np.maximum(bound, solution.lower_bound)
    hindsight = _of_loads(problem, unseen.loads)
    speeds = None if problem.speeds is None else problem.relative_speeds
    fitted = balanced(hindsight, rng_for(seed, "place/hindsight"))
    ideal = evaluate(unseen.loads, fitted, speeds).objective

    def judged(solution: Solution) -> Judged:
        return _judged(solution, problem, unseen, start.placement, ideal, seed)

    methods = {name: judged(one) for name, one in solutions.items()}
    return Comparison(judged(start), methods, bound, problem.loads)


def _of_loads(problem: Problem, loads: Floats) -> Problem:
    return Problem(
        loads, problem.num_ranks, problem.slots_per_rank, rank_slots=problem.rank_slots, speeds=problem.speeds
    )


def _judged(
    solution: Solution, problem: Problem, unseen: Unseen, origin: Placement, ideal: float, seed: int
) -> Judged:
    placed = solution.placement
    relative = problem.relative_speeds
    speeds = None if problem.speeds is None else relative
    held_out = evaluate(unseen.loads, placed, speeds)
    batches = evaluate(unseen.batches, placed, speeds)
    rng = rng_for(seed, "place/bootstrap")
    return Judged(
        solution,
        evaluate(problem.loads, placed, speeds),
        held_out,
        batches,
        {name: evaluate(loads, placed, speeds) for name, loads in unseen.domains.items()},
        dispatch(
            unseen.tokens,
            np.arange(len(unseen.tokens)) % problem.num_ranks,
            placed,
            splits.build("even"),
            rng,
            ranks_per_node=problem.ranks_per_node,
        ),
        same_rank_share(unseen.transitions, placed),
        gap_fraction(held_out.objective, ideal),
        imbalance_interval(unseen.requests, placed.rank_share, relative, rng),
        interval(batches.imbalance.mean(axis=-1), rng),
        placed.moved_experts(origin),
    )
