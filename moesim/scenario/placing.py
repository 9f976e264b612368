"""A scenario as the judge of placements: seconds of its step under any placement of its model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from moesim.errors import InputError
from moesim.placement import Placement, Solution
from moesim.scenario.build import Built, build, routed_lanes
from moesim.scenario.resolve import resolve
from moesim.scenario.result import Result
from moesim.scenario.run import run_built
from moesim.scenario.schema import PlacementSection
from moesim.scenario.simulate import times_of
from moesim.steps.program import step_program

SCORED_BATCHES = 4
"""Routed batches behind a score: a search asks for hundreds of them."""


def scenario_on_trace(name_or_path: str, trace: str, overrides: Sequence[str] = ()) -> Built:
    """A scenario that replays ``trace`` instead of its own traffic.

    Raises
    ------
    InputError
        The trace is not of the scenario's model, or anything :func:`build` refuses.
    """
    own = [f"routing={{trace: {trace}}}", "placement={method: linear}", *overrides]
    return build(resolve(name_or_path, own))


def with_placement(built: Built, placement: Placement) -> Built:
    """The same scenario under a given placement; its replicas are charged to the memory.

    Raises
    ------
    InputError
        Another number of layers, experts or ranks.
    InfeasibleError
        The replicas do not fit.
    """
    assert built.problem is not None  # a scenario with a trace has experts
    wanted = (built.problem.num_layers, built.problem.num_experts, built.problem.num_ranks)
    got = (placement.num_layers, placement.num_experts, placement.num_ranks)
    if got != wanted:
        raise InputError.at("placement", got, f"(layers, experts, ranks) = {wanted}, as of the scenario")
    section = PlacementSection(method="linear", redundant_experts=placement.num_slots - placement.num_experts)
    return replace(built.placed(section), solution=Solution(placement))


def step_result(built: Built, placement: Placement) -> Result:
    """Metrics of the step under a placement, with bands, on traffic that no placement has seen."""
    return run_built(with_placement(built, placement)).result


def step_score(built: Built) -> Callable[[Placement], float]:
    """Seconds of the step under a placement, fast enough to be asked often: few batches, no bands. [s]

    Batches are of the traffic that placements may see: a search that asks for a score learns from it.
    """
    assert built.traffic is not None  # a scenario with a trace
    built = replace(built, traffic=replace(built.traffic, held_out=built.traffic.fit))
    stages = built.stages()

    def score(placement: Placement) -> float:
        placed = replace(built, solution=Solution(placement))
        lanes = routed_lanes(placed, placement, SCORED_BATCHES)
        times = [times_of(step_program(stages, batch, built.overlap), "vector") for batch in lanes]
        return float(np.mean([time.period_s for time in times]))

    return score
