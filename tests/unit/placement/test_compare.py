import numpy as np
import pytest

from moesim.placement import Placement, Problem, Solution
from moesim.placement.compare import compare
from moesim.placement.renumber import renumbered
from moesim.placement.unseen import Unseen

LOADS = np.array([[6.0, 3.0, 2.0, 1.0]])
PROBLEM = Problem(LOADS, 2, 2)
START = Solution(Placement([[0, 1, 2, 3]], 4, 2))  # 9 | 3
GOOD = Solution(Placement([[0, 3, 1, 2]], 4, 2), lower_bound=np.array([7.0]), is_optimal=True)  # 7 | 5


def unseen_of(loads, **more):
    """Held-out traffic of one request and one batch; every token chose a single expert."""
    loads = np.asarray(loads, float)
    tokens = np.repeat(np.arange(loads.shape[1]), loads[0].astype(int))[:, None, None]
    none = np.zeros((0, loads.shape[1], loads.shape[1]))
    return Unseen(loads[None], loads[None], none, tokens, **more)


def test_methods_are_judged_alike():
    held_out = np.array([[1.0, 1.0, 1.0, 5.0]])
    unseen = unseen_of(held_out, domains={"even": np.ones((1, 4))})
    judged = compare(PROBLEM, unseen, START, {"start": START, "good": GOOD})
    assert judged.best == "good"
    assert judged.bound.tolist() == [7]
    good = judged.summary(judged.methods["good"])
    assert (good["objective"], good["gap_fraction"], good["moved_experts"]) == (7, 0, 2)
    assert good["imbalance_ratio_fit"] == pytest.approx(7 / 6)
    assert good["imbalance_ratio_held_out"] == pytest.approx(6 / 4)
    # one request and one batch leave nothing to resample
    assert good["imbalance_ratio_held_out_interval"] == [1.5, 1.5]
    assert good["imbalance_ratio_batch_interval"] == [1.5, 1.5]
    assert good["imbalance_ratio_domains"] == {"even": 1.0}
    # in hindsight 5 + 1 | 1 + 1 is the best of every placement
    assert good["regret_fraction"] == pytest.approx(0)
    # 8 tokens on ranks 0 1 0 1 ...: experts 0 to 3 stand in order, expert 3 is on rank 0
    assert (good["ranks_per_token"], good["cross_rank_sends_per_token"]) == (1, pytest.approx(4 / 8))
    assert judged.summary(judged.before)["gap_fraction"] == pytest.approx(2 / 7)
    (layer,) = judged.layers("good")
    assert (layer["objective"], layer["lower_bound"]) == (7, 7)
    assert layer["imbalance_ratio_held_out_before"] == pytest.approx(6 / 4)


def test_a_bound_of_the_even_split_is_not_held_against_solved_shares():
    problem = Problem([[10, 6, 2]], 2, 2)  # bound of any split: 9
    even = Solution(Placement([[0, 2, 0, 1]], 3, 2), lower_bound=np.array([10.0]))
    shares = Solution(Placement([[0, 2, 0, 1]], 3, 2, split=[[0.7, 1, 0.3, 1]]), lower_bound=np.array([9.0]))
    unseen = unseen_of(problem.loads)
    assert compare(problem, unseen, even, {"even": even}).bound.tolist() == [10]
    assert compare(problem, unseen, even, {"even": even, "shares": shares}).bound.tolist() == [9]


def test_renumbering_by_hand():
    swapped = Placement([[2, 3, 0, 1], [0, 3, 1, 2]], 4, 2, split=np.ones((2, 4)))
    before = Placement([[0, 1, 2, 3], [1, 2, 0, 3]], 4, 2)
    new = renumbered(swapped, before)
    assert new.physical_to_logical.tolist() == before.physical_to_logical.tolist()
    assert swapped.moved_experts(before) == 8
    assert new.moved_experts(before) == 0
    assert renumbered(swapped, before, 1) == swapped
