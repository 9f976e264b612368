"""Mixed-integer programs through PuLP on HiGHS, or on CBC where HiGHS is missing.

HiGHS runs in this process with one thread and a fixed seed. Its effort is limited first by
branch-and-bound nodes, which gives the same answer on every machine, and only then by time.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from moesim.placement.cbc import minimise_with_cbc

SOLVER_TOLERANCE = 2e-6
"""Relative amount by which a solution within HiGHS's tolerances (1e-6) may undercut the truth."""


@dataclass(frozen=True, slots=True)
class Limits:
    """When the solver gives up.

    Attributes
    ----------
    time_limit_s : float
        Wall clock. [s]
    max_nodes : int
        Branch-and-bound nodes. [-]
    gap_fraction : float
        Relative distance between incumbent and bound that counts as proven. [-]
    """

    time_limit_s: float
    max_nodes: int
    gap_fraction: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the solver found.

    Attributes
    ----------
    values : mapping of name to float, or None
        Variables of the best solution; None without one.
    dual_bound : float
        No solution has a smaller objective; ``-inf`` when nothing was proven.
    stopped_by : {'proof', 'nodes', 'time', 'failure'}
        Why it ended. Everything but ``failure`` is a result.
    """

    values: Mapping[str, float] | None
    dual_bound: float
    stopped_by: str


def new_model(name: str) -> Any:
    """Empty minimisation model."""
    import pulp  # noqa: PLC0415 - a third of a second that only solvers pay

    return pulp.LpProblem(name, pulp.LpMinimize)


def variable(model: Any, name: str, low: float, high: float | None, *, whole: bool) -> Any:
    """New decision variable of a model; names are unique within it."""
    import pulp  # noqa: PLC0415

    # PuLP before 3.3 has no add_variable, and from 3.3 on warns about the constructor
    add = getattr(model, "add_variable", pulp.LpVariable)
    return add(name, low, high, pulp.LpInteger if whole else pulp.LpContinuous)


def total(terms: Any) -> Any:
    """Sum of ``(variable, coefficient)`` pairs."""
    import pulp  # noqa: PLC0415

    return pulp.LpAffineExpression(terms)


@cache
def has_highs() -> bool:
    """Whether HiGHS is installed; without it CBC, which PuLP brings along, does the work."""
    return importlib.util.find_spec("highspy") is not None


def minimise(model: Any, limits: Limits, start: Mapping[str, float] | None = None) -> Outcome:
    """Outcome of a model, from a feasible ``start`` where one is known; prints nothing.

    Parameters
    ----------
    model : pulp.LpProblem
        A minimisation.
    limits : Limits
        When to stop.
    start : mapping of name to float, optional
        Value of every variable of a feasible solution.
    """
    if not has_highs():
        values, bound, end = minimise_with_cbc(
            model,
            time_limit_s=limits.time_limit_s,
            max_nodes=limits.max_nodes,
            gap_fraction=limits.gap_fraction,
            start=start,
        )
        return Outcome(values, bound, end)
    _silence_greeting()
    solver = _solver_class()(
        msg=False,
        threads=1,
        timeLimit=limits.time_limit_s,
        gapRel=limits.gap_fraction,
        gapAbs=0.0,
        random_seed=0,
        mip_max_nodes=limits.max_nodes,
    )
    solver.start = start
    model.solve(solver)
    return _outcome(model)


@cache
def _silence_greeting() -> None:
    """Let HiGHS greet into the void, once a process.

    Version 1.16 writes two lines to file descriptor 1 when its first object is made, before any
    option can forbid it (``test_solver_says_nothing``).
    """
    import highspy  # noqa: PLC0415

    try:
        stdout = os.dup(1)
    except OSError:  # no standard output, nothing to keep clean
        return
    void = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(void, 1)
        highspy.Highs()  # type: ignore[no-untyped-call]
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
        os.close(void)


def _solver_class() -> Any:
    import highspy  # noqa: PLC0415
    import pulp  # noqa: PLC0415

    class WarmHiGHS(pulp.HiGHS):  # type: ignore[misc]
        """PuLP's interface with a first solution, and with the statuses it does not know."""

        start: Mapping[str, float] | None = None

        def callSolver(self, lp: Any) -> None:  # noqa: N802 - PuLP's name
            if self.start is not None:
                first = highspy.HighsSolution()
                values = [0.0] * len(lp.variables())
                for var in lp.variables():
                    values[var.index] = self.start[var.name]
                first.col_value = values
                lp.solverModel.setSolution(first)
            super().callSolver(lp)

        def findSolutionValues(self, lp: Any) -> tuple[int, int]:  # noqa: N802
            # PuLP 3.3 raises KeyError for a node limit; _outcome reads the solver itself
            return pulp.LpStatusNotSolved, pulp.LpSolutionNoSolutionFound

    return WarmHiGHS


def _outcome(model: Any) -> Outcome:
    import highspy  # noqa: PLC0415

    highs = model.solverModel
    status, info = highs.getModelStatus(), highs.getInfo()
    kind = highspy.HighsModelStatus
    stopped_by = {kind.kOptimal: "proof", kind.kSolutionLimit: "nodes", kind.kTimeLimit: "time"}.get(
        status, "failure"
    )
    values = None
    if info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible:
        column = highs.getSolution().col_value
        values = {var.name: float(column[var.index]) for var in model.variables()}
    bound = float(info.mip_dual_bound)
    proven = bound if stopped_by != "failure" and math.isfinite(bound) else -math.inf
    return Outcome(values, proven, stopped_by)
