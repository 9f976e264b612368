"""Placing anew while traffic drifts: how balanced the steps are, and how many experts move for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moesim.errors import InputError
from moesim.placement.evaluate import evaluate
from moesim.placement.placed import Floats, Placement
from moesim.placement.problem import Problem
from moesim.placement.registry import Method
from moesim.placement.renumber import renumbered_solution


@dataclass(frozen=True, eq=False)
class Rebalanced:
    """A run of steps with a placement renewed every so often.

    Attributes
    ----------
    every : int
        Steps between two placements; 0 for never. [-]
    objectives : ndarray of float64, ``(steps,)``
        Largest rank load summed over layers, of each step. [tokens]
    imbalance : ndarray of float64, ``(steps,)``
        Largest over mean rank load, mean over layers. [-]
    moved : ndarray of int64, ``(times, ranks)``
        Experts that each rank had to load at each renewal. [-]
    """

    every: int
    objectives: Floats
    imbalance: Floats
    moved: np.ndarray[tuple[int, ...], np.dtype[np.int64]]

    @property
    def moved_experts(self) -> int:
        """Experts loaded over all renewals. [-]"""
        return int(self.moved.sum())


def rebalance(
    steps: Floats, shape: Problem, method: Method, every: int, window: int, rng: np.random.Generator
) -> Rebalanced:
    """Steps in their order; a placement is made from the ``window`` steps before it.

    Parameters
    ----------
    steps : ndarray of float64, ``(steps, layers, experts)``
        Traffic of each step. The first ``window`` steps only warm up. [tokens]
    shape : Problem
        Ranks and slots; its own loads are not used.
    method : Method
        Places by loads.
    every : int
        Steps between two placements; 0 keeps the first one. [-]
    window : int
        Steps that a placement is made from. [-]
    rng : numpy.random.Generator
        For methods that draw.

    Raises
    ------
    InputError
        Fewer steps than the window and one more.
    """
    if not 1 <= window < len(steps):
        raise InputError.at(
            "window", window, f"1 to {len(steps) - 1}, below the {len(steps)} steps of the trace"
        )
    current = renewed(steps[:window], shape, method, None, rng)
    objectives, imbalance, moved = [], [], []
    for number in range(window, len(steps)):
        if every and number > window and (number - window) % every == 0:
            fresh = renewed(steps[number - window : number], shape, method, current, rng)
            moved.append((fresh.resident & ~current.resident).sum(axis=(0, 1)))
            current = fresh
        served = evaluate(steps[number], current)
        objectives.append(served.objective)
        imbalance.append(served.imbalance_ratio)
    counts = np.array(moved, np.int64).reshape(-1, shape.num_ranks)
    return Rebalanced(every, np.array(objectives), np.array(imbalance), counts)


def renewed(
    seen: Floats, shape: Problem, method: Method, before: Placement | None, rng: np.random.Generator
) -> Placement:
    """Placement for steps ``(steps, layers, experts)``, on the ranks and slots of ``shape``.

    Ranks are numbered so that as little as possible moves from ``before``.
    """
    problem = Problem(
        seen.sum(axis=0), shape.num_ranks, shape.slots_per_rank, shape.ranks_per_node, shape.num_groups
    )
    solution = method.solve(problem, rng)
    return solution.placement if before is None else renumbered_solution(solution, before, problem).placement


def intervals(num_steps: int, asked: Sequence[int] | None) -> list[int]:
    """Steps between placements to compare: those asked for, or powers of two; 0 (never) among them."""
    if asked:
        return list(dict.fromkeys([0, *asked]))
    found, every = [0], 1
    while every < num_steps:
        found.append(every)
        every *= 2
    return found
