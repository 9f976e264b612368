import numpy as np
import pytest

from moesim.steps.routing import CopyTable, ExpertRanks, route


def test_copies_share_tokens_evenly():
    table = CopyTable.of(np.array([[0, 1, 0, 2]]), 3)
    ids = np.zeros((1000, 1, 1), dtype=np.int64)
    slots = table.slot_of(ids, np.arange(1000))
    counts = np.bincount(slots.ravel(), minlength=4)
    assert counts[1] == counts[3] == 0
    assert abs(counts[0] - 500) <= 1


def test_copies_share_tokens_by_a_given_split():
    split = np.array([[0.25, 1.0, 0.75, 1.0]])
    table = CopyTable.of(np.array([[0, 1, 0, 2]]), 3, split)
    slots = table.slot_of(np.zeros((1000, 1, 1), dtype=np.int64), np.arange(1000))
    assert abs(np.bincount(slots.ravel(), minlength=4)[0] - 250) <= 2


def test_an_empty_choice_goes_nowhere():
    table = CopyTable.of(np.array([[0, 1]]), 2)
    ids = np.array([[[1, -1]]])
    np.testing.assert_array_equal(table.slot_of(ids, np.arange(1)), [[[1, -1]]])


@pytest.mark.parametrize("moe_tp", [1, 2])
def test_every_choice_is_computed_once_per_tensor_rank(moe_tp):
    rng = np.random.default_rng(3)
    ep, experts, tokens = 4, 8, 200
    ids = np.argsort(rng.random((tokens, 3, experts)), axis=-1)[..., :2]
    placement = np.tile(rng.permutation(experts), (3, 1))
    ranks = ExpertRanks(np.repeat(np.arange(ep), moe_tp), np.arange(ep * moe_tp) // 4, experts)
    batch = route(ids, np.arange(tokens) % (ep * moe_tp), CopyTable.of(placement, experts), ranks, "rank")
    np.testing.assert_array_equal(batch.load.rows.sum(axis=1), tokens * 2 * moe_tp)
    np.testing.assert_array_equal(batch.expert_counts.sum(axis=1), tokens * 2)
    for layer in range(3):
        for rank in range(ep * moe_tp):
            mine = placement[layer].reshape(ep, 2)[rank // moe_tp]
            assert batch.load.rows[layer, rank] == np.isin(ids[:, layer], mine).sum()
