import numpy as np
import pytest

from moesim.placement import Placement, Problem, Solution
from moesim.placement.compare import compare
from moesim.placement.renumber import renumbered

LOADS = np.array([[6.0, 3.0, 2.0, 1.0]])
PROBLEM = Problem(LOADS, 2, 2)
START = Solution(Placement([[0, 1, 2, 3]], 4, 2))  # 9 | 3
GOOD = Solution(Placement([[0, 3, 1, 2]], 4, 2), lower_bound=np.array([7.0]), is_optimal=True)  # 7 | 5


def test_methods_are_judged_alike():
    held_out = np.array([[1.0, 1.0, 1.0, 5.0]])
    judged = compare(PROBLEM, held_out, held_out[None], START, {"start": START, "good": GOOD})
    assert judged.best == "good"
    assert judged.bound.tolist() == [7]
    good = judged.summary(judged.methods["good"])
    assert (good["objective"], good["gap_fraction"], good["moved_experts"]) == (7, 0, 2)
    assert good["imbalance_ratio_fit"] == pytest.approx(7 / 6)
    assert good["imbalance_ratio_held_out"] == pytest.approx(6 / 4)
    assert judged.summary(judged.before)["gap_fraction"] == pytest.approx(2 / 7)
    (layer,) = judged.layers("good")
    assert (layer["objective"], layer["lower_bound"]) == (7, 7)
    assert layer["imbalance_ratio_held_out_before"] == pytest.approx(6 / 4)


def test_a_bound_of_the_even_split_is_not_held_against_solved_shares():
    problem = Problem([[10, 6, 2]], 2, 2)  # bound of any split: 9
    even = Solution(Placement([[0, 2, 0, 1]], 3, 2), lower_bound=np.array([10.0]))
    shares = Solution(Placement([[0, 2, 0, 1]], 3, 2, split=[[0.7, 1, 0.3, 1]]), lower_bound=np.array([9.0]))
    loads, batches = problem.loads, problem.loads[None]
    assert compare(problem, loads, batches, even, {"even": even}).bound.tolist() == [10]
    assert compare(problem, loads, batches, even, {"even": even, "shares": shares}).bound.tolist() == [9]


def test_renumbering_by_hand():
    swapped = Placement([[2, 3, 0, 1], [0, 3, 1, 2]], 4, 2, split=np.ones((2, 4)))
    before = Placement([[0, 1, 2, 3], [1, 2, 0, 3]], 4, 2)
    new = renumbered(swapped, before)
    assert new.physical_to_logical.tolist() == before.physical_to_logical.tolist()
    assert swapped.moved_experts(before) == 8
    assert new.moved_experts(before) == 0
    assert renumbered(swapped, before, 1) == swapped
