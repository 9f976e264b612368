"""Assignment programs of all layers, one after another, each from the best placement known for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from pydantic import Field

from moesim.placement.assignment import Assignment, slots_of, solve_assignment
from moesim.placement.milp import Limits
from moesim.placement.placed import Floats, Placement
from moesim.placement.problem import Problem

ENDS = {
    "proof": "solved to proof by the integer program",
    "nodes": "left open at the node limit (max_nodes)",
    "time": "left open at the time limit (time_limit_s): the answer depends on the machine's speed",
    "size": "larger than max_variables and left to the search",
    "failure": "without an answer from the solver",
}
"""How the program of a layer ended, in words."""


@dataclass(frozen=True)
class Effort:
    """What the integer program of a layer may cost; the parameters that its methods share.

    Parameters
    ----------
    gap_fraction : float
        Distance to the bound that counts as proven. [-]
    time_limit_s : float
        Wall clock of one layer; the node limit is meant to strike first. [s]
    max_nodes : int
        Branch-and-bound nodes of one layer. [-]
    max_variables : int
        Whole-number variables above which a layer is left to the search. [-]
    """

    gap_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.001
    time_limit_s: Annotated[float, Field(gt=0)] = 60.0
    max_nodes: Annotated[int, Field(ge=1)] = 20
    max_variables: Annotated[int, Field(ge=0)] = 600

    @property
    def limits(self) -> Limits:
        """For the solver."""
        return Limits(self.time_limit_s, self.max_nodes, self.gap_fraction)


@dataclass(frozen=True, eq=False)
class Layered:
    """What the programs found.

    Attributes
    ----------
    placement : Placement
        Layer by layer at least as good as the start.
    values, bounds : ndarray of float64, ``(layers,)``
        Objective of each layer and what no assignment of the same copies undercuts.
    notes : tuple of str
        How the layers ended.
    """

    placement: Placement
    values: Floats
    bounds: Floats
    notes: tuple[str, ...]


def assigned(
    problem: Problem,
    start: Placement,
    layer_of: Callable[[int], Assignment],
    least: Callable[[Assignment], float],
    effort: Effort,
) -> Layered:
    """Every layer's program from ``start``.

    Parameters
    ----------
    problem : Problem
        Slots.
    start : Placement
        Feasible in every program.
    layer_of : callable
        Program of a layer; its ``held`` is filled in here.
    least : callable
        A lower bound of its objective that needs no solver.
    effort : Effort
        Limits.
    """
    rows = start.physical_to_logical.reshape(problem.num_layers, problem.num_ranks, -1).copy()
    values, bounds = np.zeros(problem.num_layers), np.zeros(problem.num_layers)
    ends: Counter[str] = Counter()
    for index in range(problem.num_layers):
        layer = replace(layer_of(index), held=rows[index])
        values[index], bounds[index] = layer.value(layer.counts), least(layer)
        if values[index] <= bounds[index] * (1 + effort.gap_fraction) or values[index] <= 0:
            continue
        if layer.num_variables > effort.max_variables:
            ends["size"] += 1
            continue
        counts, outcome = solve_assignment(layer, effort.limits)
        ends[outcome.stopped_by] += 1
        bounds[index] = max(bounds[index], min(outcome.dual_bound, values[index]))
        if counts is not None and layer.value(counts) < values[index]:
            values[index] = layer.value(counts)
            rows[index] = slots_of(counts, rows.shape[2])
    placement = Placement(rows.reshape(problem.num_layers, -1), problem.num_experts, problem.num_ranks)
    notes = tuple(
        f"{ends[end]} layer{'s' if ends[end] > 1 else ''} {told}" for end, told in ENDS.items() if ends[end]
    )
    return Layered(placement, values, np.minimum(bounds, values), notes)
