import numpy as np
import pytest

from moesim.errors import InputError
from moesim.placement import Placement, Problem, evaluate, gap_fraction, rank_loads

LOADS = np.array([[6.0, 3.0, 2.0, 1.0]])
TWO_COPIES_OF_0 = [[0, 1, 0, 2, 3, 3]]  # rank 0: 0 1 0, rank 1: 2 3 3


def test_slots_and_replicas():
    problem = Problem(LOADS, num_ranks=2, slots_per_rank=3, ranks_per_node=1)
    assert (problem.num_layers, problem.num_experts, problem.num_slots) == (1, 4, 6)
    assert (problem.num_replicas, problem.num_nodes) == (2, 2)
    assert Problem.with_redundancy(LOADS, 2, 2).slots_per_rank == 3


def test_loads_are_copied_and_read_only():
    mine = LOADS.copy()
    problem = Problem(mine, 2, 2)
    mine[0, 0] = 99
    assert problem.loads[0, 0] == 6
    with pytest.raises(ValueError, match="read-only"):
        problem.loads[0, 0] = 1


def test_every_problem_is_told_at_once():
    with pytest.raises(InputError) as caught:
        Problem(LOADS, num_ranks=2, slots_per_rank=1, ranks_per_node=3, num_groups=3)
    text = str(caught.value)
    assert "slots_per_rank: got 1: 2 ranks hold 2 experts, but a layer has 4; accepted: at least 2" in text
    assert "ranks_per_node: got 3; accepted: a divisor of the 2 ranks" in text
    assert "num_groups: got 3; accepted: a divisor of the 4 experts" in text
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("loads", "text"),
    [
        ([1.0, 2.0], r"loads: got shape \(2,\)"),
        (np.zeros((0, 4)), r"loads: got shape \(0, 4\)"),
        ([[1.0, -2.0]], r"loads\[0, 1\]: got -2.0"),
        ([[np.nan, 2.0]], r"loads\[0, 0\]: got nan"),
        (np.full((3, 40), -1.0), "and 110 more"),
    ],
)
def test_bad_loads(loads, text):
    with pytest.raises(InputError, match=text):
        Problem(loads, 1, 2)


def test_more_slots_on_a_rank_than_experts():
    with pytest.raises(InputError, match="got 72 on every one of 8 ranks; accepted: at most the 64 experts"):
        Problem(np.ones((1, 64)), 8, 72)


def test_batches_must_have_the_layers_and_experts():
    with pytest.raises(InputError, match=r"batch_loads: got shape \(3, 1, 5\)"):
        Problem(LOADS, 2, 2, batch_loads=np.ones((3, 1, 5)))


def test_redundancy_that_does_not_fill_ranks_names_the_nearest():
    with pytest.raises(InputError, match="nearest accepted: 0, 8"):
        Problem.with_redundancy(np.ones((1, 64)), 8, 3)
    with pytest.raises(InputError, match="nearest accepted: 2"):
        Problem.with_redundancy(np.ones((1, 6)), 8, 0)
    with pytest.raises(InputError, match="num_ranks: got 0"):
        Problem.with_redundancy(np.ones((1, 6)), 0, 0)


def test_placement_is_canonical_inside_ranks():
    one = Placement([[1, 0, 3, 2]], 4, 2)
    assert one.physical_to_logical.tolist() == [[0, 1, 2, 3]]
    assert one == Placement([[0, 1, 2, 3]], 4, 2)
    assert one != Placement([[2, 3, 0, 1]], 4, 2)
    assert one != Placement([[0, 1, 2, 3]], 4, 4)


def test_split_follows_its_slot_when_slots_are_sorted():
    placed = Placement([[1, 0, 0, 2]], 3, 2, split=[[1.0, 0.25, 0.75, 1.0]])
    assert placed.physical_to_logical.tolist() == [[0, 1, 0, 2]]
    assert placed.slot_share.tolist() == [[0.25, 1.0, 0.75, 1.0]]
    assert placed.rank_share[0].tolist() == [[0.25, 0.75], [1, 0], [0, 1]]


def test_copies_and_shares():
    placed = Placement(TWO_COPIES_OF_0, 4, 2)
    assert placed.copies.tolist() == [[2, 1, 1, 2]]
    assert placed.rank_of_slot.tolist() == [0, 0, 0, 1, 1, 1]
    assert placed.rank_share[0].tolist() == [[1, 0], [1, 0], [0, 1], [0, 1]]
    assert placed.slots_per_rank == 3


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (([[0, 1, 2, 2]], 4, 2), "layer 0 has no slot for expert 3"),
        (([[0, 1, 2, 9]], 4, 2), r"physical_to_logical\[0, 3\]: got 9; accepted: an expert 0 to 3"),
        (([[0, 1, 2, 3]], 4, 3), "num_ranks: got 3; accepted: a divisor of the 4 slots"),
        (([[0.0, 1.0]], 2, 1), "whole numbers"),
        (([[0, 1]], 2, 1, [[1.0]]), r"split: got \(1, 1\)"),
        (([[0, 0, 1]], 2, 1, [[0.5, 0.4, 1.0]]), "layer 0 expert 0 sum to 0.9, not 1"),
        (([[0, 0, 1]], 2, 1, [[1.5, -0.5, 1.0]]), r"split\[0, 1\]: got -0.5"),
    ],
)
def test_bad_placements(args, text):
    with pytest.raises(InputError, match=text):
        Placement(*args)


def test_moved_experts_counts_new_residents():
    before = Placement([[0, 1, 2, 3]], 4, 2)
    assert before.moved_experts(before) == 0
    assert Placement([[0, 2, 1, 3]], 4, 2).moved_experts(before) == 2
    assert Placement(TWO_COPIES_OF_0, 4, 2).moved_experts(before) == 0
    with pytest.raises(InputError, match="before"):
        before.moved_experts(Placement([[0, 1]], 2, 2))


def test_rank_loads_by_hand():
    placed = Placement([[0, 1, 0, 2, 3, 0]], 4, 2)  # two thirds of expert 0 on rank 0
    assert rank_loads(LOADS, placed).tolist() == [[4 + 3, 2 + 2 + 1]]
    batches = np.stack([LOADS, 2 * LOADS, 0 * LOADS])
    result = evaluate(batches, placed)
    assert result.rank_loads.tolist() == [[[7, 5]], [[14, 10]], [[0, 0]]]
    assert result.objective == 7
    assert result.imbalance.tolist() == [[7 / 6], [7 / 6], [1]]


def test_rank_loads_of_many_layers_and_batches_are_one_formula():
    rng = np.random.default_rng(3)
    loads = rng.random((5, 7, 12))
    experts = np.stack([rng.permutation(12) for _ in range(7)])
    placed = Placement(experts, 12, 4)
    slow = np.zeros((5, 7, 4))
    for batch in range(5):
        for layer in range(7):
            for slot, expert in enumerate(experts[layer]):
                slow[batch, layer, slot // 3] += loads[batch, layer, expert]
    np.testing.assert_allclose(rank_loads(loads, placed), slow)
    np.testing.assert_allclose(rank_loads(loads[2], placed), slow[2])


def test_rank_loads_of_another_shape():
    with pytest.raises(InputError, match="loads"):
        rank_loads(np.ones((1, 5)), Placement([[0, 1, 2, 3]], 4, 2))


def test_gap_fraction():
    assert gap_fraction(11, 10) == pytest.approx(0.1)
    assert gap_fraction(10 * (1 + 1e-12), 10) == 0
    assert gap_fraction(9, 10) == pytest.approx(-0.1)
    assert gap_fraction(0, 0) == 0
