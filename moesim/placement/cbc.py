"""CBC, where HiGHS is not installed: slower, bound read from its log, started from the same solution."""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BOUND = re.compile(r"^Lower bound:\s+(\S+)", re.MULTILINE)
ENDS = {"Optimal": "proof", "Stopped on node limit": "nodes", "Stopped on time limit": "time"}
"""How the log says that it ended, by the words after ``Result -``."""


def minimise_with_cbc(
    model: Any, *, time_limit_s: float, max_nodes: int, gap_fraction: float, start: Mapping[str, float] | None
) -> tuple[dict[str, float] | None, float, str]:
    """Values of the best solution, proven bound, and why it ended (as of ``milp.Outcome``).

    Parameters
    ----------
    model : pulp.LpProblem
        A minimisation.
    time_limit_s, max_nodes, gap_fraction
        As of ``milp.Limits``.
    start : mapping of name to float, optional
        Feasible solution.
    """
    import pulp  # noqa: PLC0415

    for variable in model.variables():
        if start is not None:
            variable.setInitialValue(start[variable.name])
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # PuLP 3.3 warns that its successor will not bring CBC along
        warnings.simplefilter("ignore", DeprecationWarning)
        log = Path(folder) / "cbc.log"
        solver = pulp.PULP_CBC_CMD(
            msg=False,
            threads=1,
            timeLimit=time_limit_s,
            maxNodes=max_nodes,
            gapRel=gap_fraction,
            warmStart=start is not None,
            logPath=str(log),
        )
        model.solve(solver)
        said = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    if model.sol_status not in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
        return None, float("-inf"), "failure"
    values = {variable.name: float(variable.value() or 0.0) for variable in model.variables()}
    objective = float(pulp.value(model.objective))
    end, bound = reading(said, objective, gap_fraction)
    return values, bound, end


def reading(log: str, objective: float, gap_fraction: float) -> tuple[str, float]:
    """End and proven bound that a log tells; a proof within the gap proves the objective less the gap."""
    told = re.search(r"^Result - (.*)$", log, re.MULTILINE)
    words = told[1] if told else "Optimal"  # a linear program has no such line
    end = next((name for start, name in ENDS.items() if words.startswith(start)), "failure")
    found = BOUND.search(log)
    if found:
        return end, float(found[1])
    return end, objective - gap_fraction * abs(objective) if end == "proof" else float("-inf")
