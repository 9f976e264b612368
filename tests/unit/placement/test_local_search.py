import numpy as np
import pytest

from moesim.placement import Placement, Problem, best_bound, evaluate, placement_methods
from moesim.placement.local_search import copy_weights, restarted_search, swap_search

ONE_NODE = np.zeros(2, np.int64)


def largest(weights, order, ranks):
    moved = np.take_along_axis(weights.reshape(len(weights), -1), order, axis=1)
    return moved.reshape(len(weights), ranks, -1).sum(axis=2).max(axis=1)


def test_one_swap_by_hand():
    weights = np.array([[[6.0, 4.0], [1.0, 1.0]]])  # 10 | 2: 4 for 1 leaves 7 | 5
    order, steps = swap_search(weights, ONE_NODE, np.zeros(1))
    assert largest(weights, order, 2).tolist() == [7]
    assert steps == 1
    assert sorted(order[0]) == [0, 1, 2, 3]


def test_two_for_two_where_one_for_one_does_not_help():
    # 15 | 13: no difference of two copies is 1, but 7 + 2 for 8 + 0 shifts 1 and balances
    weights = np.array([[[7.0, 4.0, 2.0, 2.0], [8.0, 5.0, 0.0, 0.0]]])
    single, _ = swap_search(weights, ONE_NODE, np.zeros(1))
    both, _ = swap_search(weights, ONE_NODE, np.zeros(1), pairs=True)
    assert largest(weights, single, 2).tolist() == [15]
    assert largest(weights, both, 2).tolist() == [14]


def test_stops_at_the_target():
    weights = np.array([[[6.0, 4.0], [1.0, 1.0]]])
    order, steps = swap_search(weights, ONE_NODE, np.array([10.0]))
    assert steps == 0
    assert order.tolist() == [[0, 1, 2, 3]]
    assert swap_search(weights, ONE_NODE, np.zeros(1), max_steps=0)[1] == 0


def test_copies_stay_on_their_node():
    rng = np.random.default_rng(0)
    weights = rng.random((5, 4, 3))
    order, _ = swap_search(weights, np.array([0, 0, 1, 1]), np.zeros(5), pairs=True)
    assert (order // 6 == np.arange(12) // 6).all()


def test_copy_weights_split_evenly():
    assert copy_weights(np.array([[6.0, 1.0]]), np.array([[0, 1, 0]])).tolist() == [[3, 1, 3]]


@pytest.mark.parametrize("replicas", [0, 8])
def test_restarts_never_lose_and_stay_valid(replicas):
    rng = np.random.default_rng(1)
    problem = Problem.with_redundancy(np.exp(rng.normal(size=(6, 24))), 8, replicas)
    start = placement_methods.build("eplb").solve(problem, rng).placement
    target = best_bound(problem)
    nodes = np.arange(8) // 4
    found = [
        restarted_search(
            problem.loads,
            start.physical_to_logical,
            nodes,
            target,
            np.random.default_rng(5),
            variants=8,
            rounds=4,
            kicks=3,
        )
        for _ in range(2)
    ]
    np.testing.assert_array_equal(*found)
    before = evaluate(problem.loads, start).largest
    after = evaluate(problem.loads, Placement(found[0], 24, 8)).largest
    assert (after <= before * (1 + 1e-12)).all()
    assert after.sum() < before.sum()
    for old, new in zip(start.physical_to_logical, found[0], strict=True):
        half = problem.num_slots // 2
        assert set(new[:half]) == set(old[:half])  # experts do not leave their node
        assert set(new[half:]) == set(old[half:])


def test_swaps_improve_on_eplb():
    rng = np.random.default_rng(2)
    problem = Problem.with_redundancy(np.exp(rng.normal(size=(8, 64))), 8, 8)
    even, swapped = (
        evaluate(problem.loads, placement_methods.build(name).solve(problem, rng).placement).largest
        for name in ("eplb", "eplb_swaps")
    )
    assert (swapped <= even).all()
    assert swapped.sum() < even.sum() * 0.999
