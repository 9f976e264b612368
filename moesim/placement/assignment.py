"""Copies of one layer to ranks as a mixed-integer program: the model that the named ILPs share.

Numbers of copies are given; ``y[e, g]`` of the ``c[e]`` copies of expert ``e`` live on rank ``g``::

    min sum_k p[k] M[k] + sum_eg cost[e,g] y[e,g]
        sum_g y[e,g] = c[e]      sum_e y[e,g] <= S[g]
        sum_e (w[k,e] / c[e]) y[e,g] <= speed[g] M[k]      M[k] <= cap[k]
        sum_eg new[e,g] <= moves,  new[e,g] >= (y[e,g] > 0) where rank g does not hold expert e now

One scenario ``k`` is one traffic: the sum, or a batch. The program starts from a feasible
placement, so its answer is never worse than that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from moesim.placement.milp import (
    SOLVER_TOLERANCE,
    Limits,
    Outcome,
    minimise,
    new_model,
    total,
    variable,
)
from moesim.placement.placed import EMPTY, Floats, Ints


@dataclass(frozen=True, eq=False)
class Assignment:
    """One layer to be assigned.

    Attributes
    ----------
    held : ndarray of int64, ``(ranks, slots)``
        Feasible start: expert in each slot, :data:`EMPTY` for none.
    loads : ndarray of float64, ``(scenarios, experts)``
        Tokens of each expert. [tokens]
    priorities : ndarray of float64, ``(scenarios,)``
        Price of the largest rank load of each scenario. [-]
    capacity : ndarray of int64, ``(ranks,)``
        Slots. [-]
    speeds : ndarray of float64, ``(ranks,)``
        Relative to the mean. [-]
    bounds : ndarray of float64, ``(scenarios,)``
        Known lower bounds of the largest rank loads. [tokens]
    costs : ndarray of float64, ``(experts, ranks)``, optional
        Price of a copy on a rank.
    caps : ndarray of float64, ``(scenarios,)``, optional
        Largest rank loads allowed. [tokens]
    before : ndarray of bool, ``(experts, ranks)``, optional
        What ranks hold now; needed with ``max_moved``.
    max_moved : int, optional
        Experts that ranks may load. [-]
    """

    held: Ints
    loads: Floats
    priorities: Floats
    capacity: Ints
    speeds: Floats
    bounds: Floats
    costs: Floats | None = None
    caps: Floats | None = None
    before: np.ndarray[tuple[int, ...], np.dtype[np.bool_]] | None = None
    max_moved: int | None = None

    @property
    def counts(self) -> Ints:
        """Copies on each rank at the start, ``(experts, ranks)``. [-]"""
        counts = np.zeros((self.loads.shape[1], len(self.capacity)), np.int64)
        rank, slot = np.nonzero(self.held != EMPTY)
        np.add.at(counts, (self.held[rank, slot], rank), 1)
        return counts

    @property
    def num_variables(self) -> int:
        """Whole-number variables of the program."""
        return int(self.loads.shape[1] * len(self.capacity))

    def value(self, counts: Ints) -> float:
        """Objective of copies by rank, ``(experts, ranks)``."""
        times = self.loads @ (counts / counts.sum(axis=1, keepdims=True)) / self.speeds
        linear = 0.0 if self.costs is None else float((self.costs * counts).sum())
        return float(self.priorities @ times.max(axis=1)) + linear


def solve_assignment(layer: Assignment, limits: Limits) -> tuple[Ints | None, Outcome]:
    """Copies by rank, ``(experts, ranks)``, and how it ended; the bound is in the objective's unit."""
    now, copies = layer.counts, layer.counts.sum(axis=1)
    experts, ranks = now.shape
    # tokens are scaled to the mean rank load, so that the solver's tolerances are relative ones
    scale = max(float(layer.loads.sum(axis=1).max()) / ranks, 1e-300)
    model, start = new_model("assignment"), {}
    times = layer.loads @ (now / copies[:, None]) / layer.speeds
    objective: list[tuple[Any, float]] = []
    tops = []
    for k, peak in enumerate(times.max(axis=1)):
        # one traffic alone may only improve; of many, one may become worse for the others
        high = float(peak) / scale if len(times) == 1 else None
        if layer.caps is not None:
            high = max(float(layer.caps[k]), float(peak)) / scale
        low = float(min(layer.bounds[k], peak)) / scale
        tops.append(variable(model, f"M{k}", low, high, whole=False))
        start[f"M{k}"] = float(peak) / scale
        objective.append((tops[-1], float(layer.priorities[k])))
    y = {
        (e, g): variable(model, f"y{e}_{g}", 0, int(min(copies[e], layer.capacity[g])), whole=True)
        for e in range(experts)
        for g in range(ranks)
    }
    start |= {f"y{e}_{g}": float(now[e, g]) for e, g in y}
    if layer.costs is not None:
        objective += [(v, float(layer.costs[at]) / scale) for at, v in y.items()]
    model += total(objective)
    for e in range(experts):
        model += total([(y[e, g], 1) for g in range(ranks)]) == int(copies[e])
    for g in range(ranks):
        model += total([(y[e, g], 1) for e in range(experts)]) <= int(layer.capacity[g])
        for k, top in enumerate(tops):
            load = layer.loads[k] / copies / scale
            model += (
                total([*((y[e, g], float(load[e])) for e in range(experts)), (top, -float(layer.speeds[g]))])
                <= 0
            )
    if layer.max_moved is not None and layer.before is not None:
        _limit_moves(model, layer, y, now, start)
    outcome = minimise(model, limits, start)
    bound = outcome.dual_bound * scale
    outcome = Outcome(outcome.values, bound - SOLVER_TOLERANCE * abs(bound), outcome.stopped_by)
    if outcome.values is None:
        return None, outcome
    found = np.array([[round(outcome.values[f"y{e}_{g}"]) for g in range(ranks)] for e in range(experts)])
    return found.astype(np.int64), outcome


def _limit_moves(
    model: Any, layer: Assignment, y: dict[tuple[int, int], Any], now: Ints, start: dict[str, float]
) -> None:
    """At most ``max_moved`` experts on ranks that do not hold them now."""
    assert layer.before is not None
    assert layer.max_moved is not None
    new = []
    for (e, g), copies in y.items():
        if layer.before[e, g]:
            continue
        most = copies.upBound
        if most <= 1:
            new.append((copies, 1))
            continue
        mark = variable(model, f"n{e}_{g}", 0, 1, whole=True)
        start[f"n{e}_{g}"] = float(now[e, g] > 0)
        model += total([(copies, 1), (mark, -most)]) <= 0
        new.append((mark, 1))
    if new:
        model += total(new) <= layer.max_moved


def slots_of(counts: Ints, slots: int) -> Ints:
    """Copies by rank as slots, ``(ranks, slots)``, free ones :data:`EMPTY`."""
    held = np.full((counts.shape[1], slots), EMPTY, np.int64)
    for rank, column in enumerate(counts.T):
        here = np.repeat(np.arange(len(column)), column)
        held[rank, : here.size] = here
    return held
