"""Experts that are chosen together on one rank: a token visits fewer ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from moesim.placement.affinity import block_descent, capped, kicked
from moesim.placement.evaluate import evaluate
from moesim.placement.location_search import Copies
from moesim.placement.placed import Floats, Placement
from moesim.placement.problem import Problem
from moesim.placement.registry import Own, Solution, placement_methods
from moesim.placement.start import balanced

KICKS = 4
"""Random exchanges of a disturbance."""
EFFORT_CELLS = 5_000_000
"""Pairs of slots, over all layers and rounds, that the search looks at."""


@placement_methods.register("co_activation")
@dataclass(frozen=True)
class CoActivation:
    """Most pairs of experts that one token chose together on one rank, under a cap on rank loads.

    Where dispatch sends a token once a rank, this lowers the bytes. It works against balance:
    experts that fire together load their rank together.

    Parameters
    ----------
    slack_fraction : float
        Largest rank load allowed, above the mean; the balanced start is allowed in any case. [-]
    rounds : int
        Disturbed descents of each layer; large problems do fewer. [-]

    References
    ----------
    .. [1] S. Luo et al., "Occult: Optimizing Collaborative Communication across Experts for Accelerated
       Parallel MoE Training and Inference," 2025 (grouping of experts that are chosen together).
    """

    needs: ClassVar[tuple[str, ...]] = ("co_activation",)

    slack_fraction: Annotated[float, Field(ge=0)] = 0.05
    rounds: Annotated[int, Field(ge=0)] = 40

    def solve(self, problem: Problem, rng: np.random.Generator) -> Solution:
        """Needs the problem's co-activation; layers do not depend on each other."""
        pairs: Floats = problem.needed("co_activation", "co_activation")
        start = balanced(problem, rng)
        caps = capped(
            problem.loads, problem.num_ranks, evaluate(problem.loads, start).largest, self.slack_fraction
        )
        best = self._descended(problem, Copies.of(start, problem.capacity), pairs, caps)
        value = together(pairs, best.placement())
        for _ in range(min(self.rounds, EFFORT_CELLS // (problem.num_layers * problem.num_slots**2))):
            disturbed = Copies.of(best.placement(), problem.capacity)
            for layer, rank in enumerate(disturbed.rank):
                disturbed.rank[layer] = kicked(rank, rng, KICKS)
            tried = self._descended(problem, disturbed, pairs, caps)
            placed = tried.placement()
            found = together(pairs, placed)
            better = (found > value) & (evaluate(problem.loads, placed).largest <= caps)
            before = Copies.of(best.placement(), problem.capacity)
            best = _mixed(before, Copies.of(placed, problem.capacity), better)
            value = np.where(better, found, value)
        placed = best.placement()
        total = max(float(_off_diagonal(pairs).sum()), 1e-300)
        own = Own("pairs_on_one_rank", "fraction", float(value.sum()) / total, higher_is_better=True)
        return Solution(placed, own=own)

    def _descended(self, problem: Problem, copies: Copies, pairs: Floats, caps: Floats) -> Copies:
        none = np.zeros((0, problem.num_experts, problem.num_experts))
        return block_descent(
            copies, problem.loads, none, problem.distances, caps, sweeps=1, attraction=_off_diagonal(pairs)
        )


def together(pairs: Floats, placement: Placement) -> Floats:
    """Ordered pairs of experts chosen together that are on one rank, ``(layers,)``. [tokens]"""
    share = placement.rank_share
    kept = np.einsum("leg,leg->l", np.matmul(_off_diagonal(pairs), share), share)
    return np.asarray(kept, np.float64)


def _off_diagonal(pairs: Floats) -> Floats:
    return np.asarray(pairs * (1.0 - np.eye(pairs.shape[1])), np.float64)


def _mixed(one: Copies, two: Copies, take_two: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> Copies:
    """Layers of ``two`` where asked, else of ``one``."""
    chosen = [two if take else one for take in take_two]
    return Copies(
        [c.expert[i] for i, c in enumerate(chosen)],
        [c.rank[i] for i, c in enumerate(chosen)],
        [c.weight[i] for i, c in enumerate(chosen)],
        one.num_experts,
        one.num_ranks,
        one.slots_per_rank,
    )
