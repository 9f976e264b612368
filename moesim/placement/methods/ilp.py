"""The exact method: search first, then a mixed-integer program for every layer that is still open."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Annotated, Literal, TypeAlias

import numpy as np
from pydantic import Field

from moesim.placement.bounds import best_bound, rounded_up
from moesim.placement.evaluate import evaluate
from moesim.placement.layer_model import (
    Layer,
    copy_options,
    num_variables,
    solve_even,
    solve_shares,
)
from moesim.placement.local_search import copy_weights, restarted_search
from moesim.placement.methods.eplb_swaps import EplbSwaps
from moesim.placement.milp import SOLVER_TOLERANCE, Limits
from moesim.placement.placed import Floats, Ints, Placement
from moesim.placement.problem import Problem
from moesim.placement.registry import Solution, placement_methods

ROUNDING = 1e-10
"""Part of the mean rank load that is rounding."""

_Found: TypeAlias = tuple[Ints, Floats] | None


@placement_methods.register("ilp")
@dataclass(frozen=True)
class Ilp:
    """Smallest largest rank load, layer by layer, with a proven bound.

    The answer starts as ``eplb_swaps``, so it is never above EPLB's with the same slots. Layers
    whose gap to the bound exceeds ``gap_fraction`` are searched from disturbed placements; those
    still open go to HiGHS with the best placement as its start. Layers too large for it keep that
    placement, and the gap is reported as it is. Nodes and expert groups do not bind it.

    Parameters
    ----------
    split : {'even', 'solved'}
        Tokens go evenly over the copies of an expert, as engines do by default, or by shares that
        are found too.
    gap_fraction : float
        Distance to the bound that counts as proven. [-]
    time_limit_s : float
        Wall clock of one layer in HiGHS. If it strikes, a note says that the answer depends on
        the machine's speed; the node limit is meant to strike first. [s]
    max_nodes : int
        Branch-and-bound nodes of one layer. [-]
    max_variables : int
        Whole-number variables above which a layer is not given to HiGHS. [-]
    rounds, variants, kicks : int
        Rounds of the search, disturbed placements a layer and round, exchanges in each. [-]
    """

    split: Literal["even", "solved"] = "even"
    gap_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.001
    time_limit_s: Annotated[float, Field(gt=0)] = 60.0
    max_nodes: Annotated[int, Field(ge=1)] = 20
    max_variables: Annotated[int, Field(ge=0)] = 600
    rounds: Annotated[int, Field(ge=0)] = 60
    variants: Annotated[int, Field(ge=1)] = 32
    kicks: Annotated[int, Field(ge=0)] = 5

    def solve(self, problem: Problem, rng: np.random.Generator) -> Solution:
        """Placement; same seed, same answer, as long as no time limit strikes."""
        problem.check_equal_slots("ilp")
        bound = best_bound(problem)
        experts = self._searched(problem, bound, rng)
        shares = copy_weights(np.ones_like(problem.loads), experts)
        ends: Counter[str] = Counter()
        for index in range(problem.num_layers):
            layer = _layer(problem, index, experts[index], shares[index], bound[index])
            if self.split == "solved" and problem.num_replicas and not self._is_closed(layer):
                found, _ = solve_shares(layer, _by_rank(layer, shares[index]), self._limits, fixed=True)
                layer = _better(layer, found, experts[index], shares[index])
            if self._is_closed(layer):
                continue
            outcome_end, proven, found = self._solve_layer(layer, shares[index])
            ends[outcome_end] += 1
            layer = _better(layer, found, experts[index], shares[index])
            whole = rounded_up(problem.loads[index : index + 1], problem.num_replicas, np.array([proven]))
            bound[index] = max(bound[index], min(float(whole[0]), layer.incumbent))
        return self._solution(problem, experts, shares, bound, ends)

    @property
    def _limits(self) -> Limits:
        return Limits(self.time_limit_s, self.max_nodes, self.gap_fraction)

    def _is_closed(self, layer: Layer) -> bool:
        return layer.incumbent <= layer.bound * (1 + self.gap_fraction) + ROUNDING * layer.scale

    def _searched(self, problem: Problem, bound: Floats, rng: np.random.Generator) -> Ints:
        """Best of the two EPLB modes in each layer, improved where the gap is open."""
        modes: tuple[Literal["auto", "global"], ...] = ("auto", "global")
        starts = [EplbSwaps(mode=mode).solve(problem, rng).placement for mode in modes]
        peaks = np.stack([evaluate(problem.loads, start).largest for start in starts])
        first = np.where((peaks[0] <= peaks[1])[:, None], *(s.physical_to_logical for s in starts))
        return restarted_search(
            problem.loads,
            first,
            np.zeros(problem.num_ranks, np.int64),
            bound * (1 + self.gap_fraction),
            rng,
            variants=self.variants,
            rounds=self.rounds,
            kicks=self.kicks,
        )

    def _solve_layer(self, layer: Layer, shares: Floats) -> tuple[str, float, _Found]:
        """How the solver ended, the bound it proved, and what it found."""
        experts, (ranks, slots) = layer.loads.size, layer.held.shape
        if self.split == "solved" and experts < ranks * slots:
            if experts * ranks > self.max_variables:
                return "size", layer.bound, None
            found, outcome = solve_shares(layer, _by_rank(layer, shares), self._limits, fixed=False)
            return outcome.stopped_by, outcome.dual_bound, found
        options, is_complete = copy_options(layer, self.max_variables)
        if num_variables(options, ranks) > self.max_variables:
            return "size", layer.bound, None
        held, outcome = solve_even(layer, options, self._limits)
        proven = outcome.dual_bound if is_complete else layer.bound
        if held is None:
            return outcome.stopped_by, proven, None
        even = copy_weights(np.ones((1, experts)), held.reshape(1, -1))
        return outcome.stopped_by, proven, (held, even.reshape(held.shape))

    def _solution(
        self, problem: Problem, experts: Ints, shares: Floats, bound: Floats, ends: Counter[str]
    ) -> Solution:
        is_even = self.split == "even" or not problem.num_replicas
        placement = Placement(
            experts, problem.num_experts, problem.num_ranks, split=None if is_even else shares
        )
        largest = evaluate(problem.loads, placement).largest
        closed = largest <= bound * (1 + self.gap_fraction + 2 * SOLVER_TOLERANCE)
        notes = [
            f"{closed.sum()} of {problem.num_layers} layers proven within {self.gap_fraction:.3%} of optimal"
        ]
        notes += [f"{ends[end]} layers {told}" for end, told in _ENDS.items() if ends[end]]
        return Solution(placement, bound, bool(closed.all()), tuple(notes))


_ENDS = {
    "proof": "finished by HiGHS",
    "nodes": "left open at the node limit (max_nodes)",
    "time": "left open at the time limit (time_limit_s): the answer depends on the machine's speed",
    "size": "larger than max_variables and not given to HiGHS",
    "failure": "without an answer from HiGHS",
}


def _layer(problem: Problem, index: int, experts: Ints, shares: Floats, bound: float) -> Layer:
    held = experts.reshape(problem.num_ranks, -1)
    peak = (problem.loads[index][experts] * shares).reshape(held.shape).sum(axis=1).max()
    return Layer(problem.loads[index], held, float(bound), float(peak))


def _by_rank(layer: Layer, shares: Floats) -> Floats:
    """Share of each expert on each rank, ``(experts, ranks)``."""
    result = np.zeros((layer.loads.size, layer.held.shape[0]))
    rank = np.repeat(np.arange(layer.held.shape[0]), layer.held.shape[1])
    np.add.at(result, (layer.held.ravel(), rank), shares)
    return result


def _better(layer: Layer, found: _Found, experts: Ints, shares: Floats) -> Layer:
    """Layer with the better placement; ``experts`` and ``shares`` take the found one if that is it."""
    if found is None:
        return layer
    held, part = found
    peak = float((layer.loads[held] * part).sum(axis=1).max())
    if peak >= layer.incumbent:
        return layer
    experts[:], shares[:] = held.ravel(), part.ravel()
    return replace(layer, held=held, incumbent=peak)
