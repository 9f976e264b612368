import numpy as np
import pytest

from moesim.placement import Problem, best_bound, lower_bounds
from moesim.placement.bounds import cardinality_bound, company_bound, hottest_bound, mean_bound, rounded_up


def row(*loads):
    return np.array([loads], float)


def test_mean():
    assert mean_bound(row(4, 2, 1, 1), 2).tolist() == [4]


@pytest.mark.parametrize(
    ("loads", "ranks", "replicas", "expected"),
    [
        ((9, 4, 1), 3, 0, 9),
        ((9, 4, 1), 3, 1, 4.5),  # 9 on two ranks
        ((9, 4, 1), 3, 2, 4),  # 9 on three
        ((9, 8, 1), 3, 2, 4.5),  # 9 and 8 on two each
        ((9, 1, 1), 2, 5, 4.5),  # more copies than ranks do not help
    ],
)
def test_hottest_copy(loads, ranks, replicas, expected):
    assert hottest_bound(row(*loads), ranks, replicas) == pytest.approx(expected)


def test_cardinality_by_hand():
    # three of the five heaviest 5 5 5 5 5 share a rank with nothing lighter than 0: 2 ranks, 3 slots
    assert cardinality_bound(row(5, 5, 5, 5, 5, 0), 2, 3) == pytest.approx(15)
    # no spare slots: the hottest is with the lightest
    assert cardinality_bound(row(9, 3, 2, 1), 2, 2) == pytest.approx(10)
    # one replica: of the four heaviest 6 6 6 6, three are single, so two of them share one of two ranks
    assert cardinality_bound(row(6, 6, 6, 6, 1), 2, 3) == pytest.approx(12)


def test_company_by_hand():
    # 9 and 8 apart keep 1 1 and 1 2 at best: 22 tokens on two of three ranks
    loads = row(9, 8, 2, 1, 1, 1, 0, 0, 0)
    assert company_bound(loads, 3, 3)[0] == pytest.approx(9)  # k = 1: 9 + 0 + 0
    # two hot experts need four light ones: 20 + 1 + 1 + 3 + 3 over two ranks
    assert company_bound(row(10, 10, 3, 3, 3, 3, 1, 1, 3), 3, 3)[0] == pytest.approx(14)
    assert company_bound(row(10, 10, 3, 3), 3, 2).tolist() == [0]  # spare slots


def test_whole_loads_round_up_without_replicas():
    loads = row(3, 2, 2, 2)
    assert lower_bounds(Problem(loads, 2, 2))["mean"].tolist() == [5]
    assert lower_bounds(Problem(loads / 2, 2, 2))["mean"].tolist() == [2.25]
    assert lower_bounds(Problem(loads, 2, 3))["mean"].tolist() == [4.5]
    assert rounded_up(loads, 0, np.array([5 + 1e-12])).tolist() == [5 + 1e-12]


def test_best_takes_the_largest_per_layer():
    problem = Problem([[8, 1, 1, 1], [3, 3, 3, 3]], 2, 2)
    assert best_bound(problem).tolist() == [9, 6]
    assert best_bound(problem, np.array([0, 7.0])).tolist() == [9, 7]
