import itertools
import subprocess
import sys

import numpy as np
import pytest

from moesim.errors import InputError
from moesim.evidence import rng_for
from moesim.placement import Problem, best_bound, evaluate, placement_methods
from moesim.placement.layer_model import Layer, copy_options, solve_even, solve_shares
from moesim.placement.milp import Limits, minimise, new_model, total, variable

NO_SEARCH = {"rounds": 0, "gap_fraction": 0.0, "max_nodes": 10_000}


def solve(problem, **params):
    return placement_methods.build("ilp", params).solve(problem, rng_for(0, "placement"))


def brute_force(loads, ranks, slots):
    """Smallest largest rank load with the even split, over every filling of every rank."""
    experts, best = len(loads), np.inf
    fillings = list(itertools.combinations_with_replacement(range(experts), slots))
    held = np.array([np.bincount(f, minlength=experts) for f in fillings])
    for choice in itertools.combinations_with_replacement(range(len(fillings)), ranks):
        counts = held[list(choice)]
        copies = counts.sum(axis=0)
        if copies.all():
            best = min(best, (counts * loads / copies).sum(axis=1).max())
    return best


@pytest.mark.parametrize(
    ("loads", "ranks", "slots"),
    [
        ((7, 5, 4, 3, 2, 1), 2, 3),
        ((7, 5, 4, 3, 2, 1), 3, 2),
        ((9, 1, 1, 1, 1), 2, 3),
        ((11, 6, 5, 2), 2, 3),
        ((4, 1, 5), 2, 2),  # the spare slot must repeat an expert on its own rank
        ((8, 7, 1, 1), 3, 2),
        ((5, 5, 5, 5, 5, 3, 2), 2, 4),
    ],
)
def test_agrees_with_brute_force(loads, ranks, slots):
    problem = Problem([loads], ranks, slots)
    best = brute_force(np.array(loads, float), ranks, slots)
    solution = solve(problem, **NO_SEARCH)
    assert evaluate(problem.loads, solution.placement).objective == pytest.approx(best)
    assert solution.lower_bound[0] <= best * (1 + 1e-9)
    assert solution.is_optimal
    assert solution.lower_bound[0] == pytest.approx(best, rel=1e-5)


def test_never_above_eplb_and_never_below_the_bound():
    rng = np.random.default_rng(4)
    for replicas in (0, 8, 16):
        problem = Problem.with_redundancy(np.floor(300 * np.exp(rng.normal(size=(4, 32)))), 8, replicas)
        eplb = placement_methods.build("eplb").solve(problem, rng).placement
        solution = solve(problem, rounds=3, max_nodes=1)
        largest = evaluate(problem.loads, solution.placement).largest
        assert (largest <= evaluate(problem.loads, eplb).largest).all()
        assert (largest >= solution.lower_bound * (1 - 1e-9)).all()
        assert (solution.lower_bound >= best_bound(problem) * (1 - 1e-9)).all()
        assert solution.split_rule == "even"


def test_solved_split_beats_the_even_one_where_shares_matter():
    problem = Problem([[10, 6, 2]], 2, 2)
    even, solved = solve(problem, **NO_SEARCH), solve(problem, split="solved", **NO_SEARCH)
    assert evaluate(problem.loads, even.placement).objective == pytest.approx(10)
    # 10 on both ranks: 7 beside 2, 3 beside 6
    assert evaluate(problem.loads, solved.placement).objective == pytest.approx(9)
    assert solved.split_rule == "solved"
    assert solved.is_optimal
    assert solve(Problem([[10, 6, 2, 1]], 2, 2), split="solved").split_rule == "even"  # nothing to split


def test_shares_of_fixed_slots_are_a_linear_program():
    loads = np.array([10.0, 6.0, 2.0])
    layer = Layer(loads, np.array([[0, 2], [0, 1]]), 9.0, 11.0)
    shares = np.array([[0.5, 0.5], [0, 1], [1, 0]])
    (held, part), outcome = solve_shares(layer, shares, Limits(10, 10, 0.0), fixed=True)
    assert outcome.stopped_by == "proof"
    assert (loads[held] * part).sum(axis=1) == pytest.approx([9, 9])


def test_free_slots_repeat_an_expert_without_share():
    problem = Problem([[5, 5]], 2, 2)
    placed = solve(problem, split="solved", **NO_SEARCH).placement
    assert evaluate(problem.loads, placed).objective == pytest.approx(5)


def test_limits_are_results_and_are_told():
    rng = np.random.default_rng(9)
    problem = Problem(np.floor(1000 * np.exp(0.2 * rng.normal(size=(2, 32)))), 8, 4)
    nodes = solve(problem, gap_fraction=0.0, rounds=1, max_nodes=1)
    assert any("node limit" in note for note in nodes.notes)
    size = solve(problem, gap_fraction=0.0, rounds=1, max_variables=10)
    assert any("max_variables" in note for note in size.notes)
    assert not size.is_optimal
    time = solve(problem, gap_fraction=0.0, rounds=1, time_limit_s=1e-9)
    assert any("time limit" in note for note in time.notes)


def test_start_is_used():
    loads = np.array([7.0, 5, 4, 3, 2, 1])
    held = np.array([[0, 3, 5], [1, 2, 4]])  # 11 | 11, optimal
    layer = Layer(loads, held, 10.0, 11.0)
    options, is_complete = copy_options(layer, 600)
    found, outcome = solve_even(layer, options, Limits(10, 1, 0.0))
    assert is_complete
    assert found is not None
    assert loads[found].sum(axis=1).tolist() == [11, 11]
    assert outcome.dual_bound == pytest.approx(11, rel=1e-5)


def test_copies_are_limited_when_there_are_too_many_variables():
    layer = Layer(np.array([30.0, 1, 1, 1]), np.array([[0, 1], [0, 2], [0, 3], [0, 0]]), 8.25, 9.0)
    assert copy_options(layer, 1000) == ([[1, 2, 3, 4, 5]] * 4, True)
    assert copy_options(layer, 10) == ([[1, 2, 3, 4, 5], [1, 2], [1, 2], [1, 2]], False)


def test_infeasible_model_is_a_failure_without_values():
    model = new_model("none")
    x = variable(model, "x", 0, 1, whole=True)
    model += total([(x, 1)])
    model += total([(x, 2)]) == 1
    outcome = minimise(model, Limits(10, 10, 0.0))
    assert (outcome.values, outcome.stopped_by) == (None, "failure")
    assert outcome.dual_bound == -np.inf


def test_solver_says_nothing():
    code = (
        "import numpy as np\n"
        "from moesim.placement import Problem, placement_methods\n"
        "loads = np.floor(1000 * np.exp(0.2 * np.random.default_rng(9).normal(size=(1, 32))))\n"
        "ilp = placement_methods.build('ilp', {'gap_fraction': 0.0, 'rounds': 0, 'max_nodes': 1})\n"
        "solution = ilp.solve(Problem(loads, 8, 4), np.random.default_rng(0))\n"
        "assert any('node limit' in note for note in solution.notes), solution.notes\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_parameters_are_checked():
    with pytest.raises(InputError, match="gap_fraction"):
        placement_methods.build("ilp", {"gap_fraction": -1})
    with pytest.raises(InputError, match="time_limit_s"):
        placement_methods.build("ilp", {"time_limit_s": 0})
