"""Simulated annealing on the simulator itself: exchanges that make the step faster, sometimes slower."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from moesim.placement.evaluate import evaluate
from moesim.placement.local_search import LEAST_GAIN
from moesim.placement.placed import Floats, Placement
from moesim.placement.problem import Problem
from moesim.placement.registry import Own, Solution, placement_methods
from moesim.placement.start import balanced

CANDIDATES = 8
"""Exchanges drawn for a step, of which one is scored."""


@placement_methods.register("annealing")
@dataclass(frozen=True)
class Annealing:
    """Exchanges of copies judged by the whole step, from the balanced placement.

    The score is the problem's (the simulated step time, where a scenario asks) or, without one, the
    largest rank load in the mean over batches. A layer is drawn by how far it is out of balance; two
    copies of different ranks change places, the pair that leaves the lower load of some drawn. What is
    worse is accepted with probability ``exp(-increase / temperature)``; the temperature falls linearly
    to zero, and the best placement seen is the answer.

    Parameters
    ----------
    steps : int
        Placements that are scored. [-]
    temperature_fraction : float
        First temperature over the score of the start. [-]
    """

    needs: ClassVar[tuple[str, ...]] = ("batch_loads",)

    steps: Annotated[int, Field(ge=0)] = 300
    temperature_fraction: Annotated[float, Field(ge=0)] = 0.0001

    def solve(self, problem: Problem, rng: np.random.Generator) -> Solution:
        """Same seed, same answer; never worse than the balanced placement by its own score."""
        score, unit = _score_of(problem)
        current = balanced(problem, rng)
        first = now = score(current)
        best, least = current, now
        for step in range(self.steps):
            tried = _exchanged(current, problem.loads, rng)
            if tried is None:
                break
            after = score(tried)
            temperature = self.temperature_fraction * first * (1 - step / self.steps)
            rise = after - now
            if rise <= 0 or (temperature > 0 and rng.random() < math.exp(-rise / temperature)):
                current, now = tried, after
            if now < least:
                best, least = current, now
        gain = 1 - least / first if first > 0 else 0.0
        what = "simulated step" if problem.score is not None else "largest rank load of batches"
        notes = (f"{what}: {100 * gain:.2f} % below the balanced start after {self.steps} steps",)
        return Solution(best, notes=notes, own=Own("step" if unit == "s" else "score", unit, least))


def _score_of(problem: Problem) -> tuple[Callable[[Placement], float], str]:
    if problem.score is not None:
        return problem.score, "s"
    traffic: Floats = problem.loads if problem.batch_loads is None else problem.batch_loads
    speeds = None if problem.speeds is None else problem.relative_speeds
    return lambda placement: evaluate(traffic, placement, speeds).objective, "tokens"


def _exchanged(placement: Placement, loads: Floats, rng: np.random.Generator) -> Placement | None:
    """Neighbour of a placement; None where one rank holds everything."""
    if placement.num_ranks < 2:
        return None
    served = evaluate(loads, placement)
    excess = served.largest - served.rank_loads.mean(axis=-1) + LEAST_GAIN
    layer = int(rng.choice(placement.num_layers, p=excess / excess.sum()))
    here = served.rank_loads[layer]
    share = placement.slot_share[layer] * loads[layer][np.maximum(placement.physical_to_logical[layer], 0)]
    rank = placement.rank_of_slot
    one, two = rng.integers(placement.num_slots, size=(2, CANDIDATES))
    shift = share[one] - share[two]
    after = np.maximum(here[rank[one]] - shift, here[rank[two]] + shift)
    after[rank[one] == rank[two]] = np.inf
    best = int(after.argmin())
    if not np.isfinite(after[best]):
        return placement
    rows = placement.physical_to_logical.copy()
    pair = [int(one[best]), int(two[best])]
    rows[layer, pair] = rows[layer, pair[::-1]]
    return Placement(rows, placement.num_experts, placement.num_ranks)
