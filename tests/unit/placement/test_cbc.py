"""The fallback solver finds what HiGHS finds."""

import numpy as np
import pytest

from moesim.evidence import rng_for
from moesim.placement import Problem, evaluate, milp, placement_methods
from moesim.placement.cbc import reading

LOADS = np.floor(500 * np.exp(np.random.default_rng(3).normal(size=(2, 8))))


@pytest.mark.parametrize(
    ("method", "params"),
    [("speed_ilp", {"gap_fraction": 0.0}), ("ilp", {"gap_fraction": 0.0, "rounds": 0, "max_nodes": 500})],
)
def test_same_optimum_without_highs(monkeypatch, method, params):
    problem = Problem(LOADS, 2, 4, speeds=np.array([1.0, 2.0]) if method == "speed_ilp" else None)
    speeds = None if problem.speeds is None else problem.relative_speeds
    built = placement_methods.build(method, params)
    with_highs = evaluate(LOADS, built.solve(problem, rng_for(0, "x")).placement, speeds).largest
    monkeypatch.setattr(milp, "has_highs", lambda: False)
    solution = built.solve(problem, rng_for(0, "x"))
    with_cbc = evaluate(LOADS, solution.placement, speeds).largest
    np.testing.assert_allclose(with_cbc, with_highs, rtol=1e-5)
    assert (solution.lower_bound <= with_cbc * (1 + 1e-9)).all()


@pytest.mark.parametrize(
    ("log", "wanted"),
    [
        ("Result - Optimal solution found\n", ("proof", 10.0)),
        ("Result - Stopped on node limit\n\nLower bound:    8.5\n", ("nodes", 8.5)),
        ("Result - Stopped on time limit\n", ("time", -np.inf)),
        ("", ("proof", 10.0)),
        ("Result - Problem proven infeasible\n", ("failure", -np.inf)),
    ],
)
def test_what_the_log_tells(log, wanted):
    assert reading(log, 10.0, 0.0) == wanted


def test_a_gap_is_taken_off_the_proof():
    assert reading("Result - Optimal solution found (within gap tolerance)\n", 10.0, 0.1)[1] == 9.0
