"""Every placement method keeps the promises of the kind."""

import dataclasses
from functools import cache

import numpy as np
import pytest

from moesim.evidence import rng_for
from moesim.placement import Placement, Problem, best_bound, evaluate, placement_methods

QUICK = {"max_nodes": 2, "max_variables": 100, "rounds": 10, "steps": 30}
"""Less effort than by default: the promises are about any."""
NODES = {"ranks_per_node": 2, "num_groups": 4}
CASES = {
    "plain": {"layers": 2, "experts": 16, "num_ranks": 4, "slots_per_rank": 4},
    "replicas": {"layers": 1, "experts": 8, "num_ranks": 3, "slots_per_rank": 4},
    "uneven": {"layers": 1, "experts": 10, "num_ranks": 4, "slots_per_rank": 3},
    "one_rank": {"layers": 2, "experts": 5, "num_ranks": 1, "slots_per_rank": 5},
    "one_expert": {"layers": 1, "experts": 1, "num_ranks": 3, "slots_per_rank": 1},
    "one_each": {"layers": 2, "experts": 6, "num_ranks": 6, "slots_per_rank": 1},
    "grouped": {"layers": 2, "experts": 16, "num_ranks": 4, "slots_per_rank": 5, **NODES},
    "silent": {"layers": 2, "experts": 8, "num_ranks": 2, "slots_per_rank": 5, "scale": 0.0},
}


def problem_of(layers, experts, scale=1.0, **shape):
    rng = np.random.default_rng(layers * 100 + experts)
    loads = np.floor(scale * 500 * np.exp(rng.normal(size=(layers, experts))))
    pairs = rng.integers(0, 50, (layers, experts, experts)) * scale
    ranks = shape["num_ranks"]
    everything = {
        "batch_loads": rng.poisson(loads / 20, (3, layers, experts)),
        "transitions": pairs[1:],
        "co_activation": pairs + pairs.transpose(0, 2, 1),
        "rank_costs": rng.random((layers, ranks)),
        "score": lambda placement: float(evaluate(loads, placement).objective),
    }
    start = Problem(loads, **shape)
    linear = placement_methods.build("linear").solve(start, rng_for(0, "start")).placement
    return Problem(loads, **shape, **everything, start=linear)


def method_of(name):
    known = placement_methods.classes[name].__dataclass_fields__
    return placement_methods.build(name, {field: n for field, n in QUICK.items() if field in known})


@cache
def solved(method, case):
    """A problem and its solution, which the promises are looked at; solved anew only for ``same seed``."""
    problem = problem_of(**CASES[case])
    return problem, method_of(method).solve(problem, rng_for(0, "placement"))


every_case = pytest.mark.parametrize("case", sorted(CASES))
every_method = pytest.mark.parametrize("method", placement_methods.names())


def test_the_expected_methods_are_registered():
    expected = {"linear", "round_robin", "random", "greedy", "eplb", "eplb_swaps", "ilp"}
    expected |= {"affinity", "co_activation", "robust_ilp", "topology_ilp", "speed_ilp", "replica_ilp"}
    expected |= {"migration_ilp", "moetuner", "annealing"}
    assert expected <= set(placement_methods.names())


@every_case
@every_method
def test_placement_has_the_asked_shape(method, case):
    problem, solution = solved(method, case)
    placed = solution.placement
    assert isinstance(placed, Placement)
    assert placed.copies.sum() <= problem.num_layers * problem.num_slots
    assert (placed.num_experts, placed.num_ranks) == (problem.num_experts, problem.num_ranks)
    served = evaluate(problem.loads, placed).rank_loads
    np.testing.assert_allclose(served.sum(axis=1), problem.loads.sum(axis=1), rtol=1e-7)


@every_case
@every_method
def test_same_seed_same_placement(method, case):
    _, first = solved(method, case)
    second = method_of(method).solve(problem_of(**CASES[case]), rng_for(0, "placement"))
    assert first.placement == second.placement
    assert first.notes == second.notes


@every_case
@every_method
def test_no_placement_beats_a_bound(method, case):
    problem, solution = solved(method, case)
    largest = evaluate(problem.loads, solution.placement).largest
    assert (largest >= best_bound(problem, solution.lower_bound) * (1 - 1e-9)).all()


@every_method
def test_method_describes_itself(method):
    built = method_of(method)
    assert dataclasses.is_dataclass(built)
    assert type(built).__doc__
    assert type(built).__dataclass_params__.frozen
