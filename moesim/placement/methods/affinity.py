"""Experts that follow each other on one rank: tokens stay where they are between layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from moesim.placement.affinity import (
    capped,
    iterated_descent,
    same_rank_share,
    spectral_bound,
)
from moesim.placement.evaluate import evaluate
from moesim.placement.location_search import Copies
from moesim.placement.placed import Floats, Placement
from moesim.placement.problem import Problem
from moesim.placement.registry import Own, Solution, placement_methods
from moesim.placement.start import balanced

EFFORT_CELLS = 1_000_000
"""Pairs of slots, over all rounds, that the search looks at when it looks at a layer once a round."""


@placement_methods.register("affinity")
@dataclass(frozen=True)
class Affinity:
    """Least cost of tokens between neighbouring layers, under a cap on every rank load.

    Starts from balanced ranks. Each layer in turn moves to where its neighbours are by exchanges of
    copies (block descent); disturbed layers and renamed ranks lead out of local minima. Link costs
    of the problem weigh the way, so that with a node and a network a token rather stays on its node.

    Parameters
    ----------
    slack_fraction : float
        Largest rank load allowed, above the mean; the balanced start is allowed in any case. [-]
    sweeps, rounds : int
        Sweeps over the layers in a descent, and disturbed descents; large problems do fewer. [-]

    References
    ----------
    .. [1] J. Yao et al., "Exploiting Inter-Layer Expert Affinity for Accelerating Mixture-of-Experts
       Model Inference" (ExFlow), arXiv:2401.08383; there as an integer program over tokens.
    """

    needs: ClassVar[tuple[str, ...]] = ("transitions",)

    slack_fraction: Annotated[float, Field(ge=0)] = 0.05
    sweeps: Annotated[int, Field(ge=1)] = 6
    rounds: Annotated[int, Field(ge=0)] = 600

    def solve(self, problem: Problem, rng: np.random.Generator) -> Solution:
        """Needs the problem's transitions; the spectral bound holds without replicas."""
        transitions: Floats = problem.needed("transitions", "affinity")
        start = balanced(problem, rng)
        caps = capped(
            problem.loads, problem.num_ranks, evaluate(problem.loads, start).largest, self.slack_fraction
        )
        cells = problem.num_slots**2
        found = iterated_descent(
            Copies.of(start, problem.capacity),
            problem.loads,
            transitions,
            problem.distances,
            caps,
            rng,
            sweeps=self.sweeps,
            rounds=min(self.rounds, EFFORT_CELLS // cells),
        ).placement()
        return Solution(found, own=kept_share(problem, transitions, found))


def kept_share(problem: Problem, transitions: Floats, placement: Placement) -> Own:
    """Share of next-layer pairs on one rank beside what the spectral bound allows."""
    total = float(transitions.sum())
    has_bound = problem.num_replicas == 0 and problem.num_experts % problem.num_ranks == 0
    bound = None
    if has_bound and problem.rank_slots is None:
        bound = float(spectral_bound(transitions, problem.num_ranks).sum()) / total if total > 0 else 1.0
    return Own(
        "same_rank_share",
        "fraction",
        same_rank_share(transitions, placement),
        bound,
        "spectral",
        higher_is_better=True,
    )
