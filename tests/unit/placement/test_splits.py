"""Run-time splits: nobody loses a token, and each keeps what it promises."""

import numpy as np
import pytest

from moesim.evidence import rng_for
from moesim.placement import Placement, Problem, placement_methods
from moesim.placement.dispatch import dispatch
from moesim.placement.placed import EMPTY
from moesim.placement.split_registry import Batch, splits
from moesim.placement.splits.least_loaded import filled_up

RNG = np.random.default_rng(5)
IDS = np.stack([RNG.permuted(np.tile(np.arange(12), (200, 1)), axis=1)[:, :3] for _ in range(2)], axis=1)
IDS = np.where(RNG.random(IDS.shape) < 0.5, IDS // 4, IDS)  # experts 0 to 2 are hot
IDS[0, 0, 0] = -1
SOURCE = np.arange(200) % 4


@pytest.fixture(scope="module")
def placed():
    counts = np.stack([np.bincount(IDS[:, i][IDS[:, i] >= 0], minlength=12) for i in range(2)])
    problem = Problem.with_redundancy(counts, 4, 4)
    return placement_methods.build("eplb_swaps").solve(problem, RNG).placement


def run(name, placed, **params):
    split = splits.build(name, params)
    return dispatch(IDS, SOURCE, placed, split, rng_for(0, name), ranks_per_node=2)


@pytest.mark.parametrize("name", splits.names())
def test_every_choice_is_served_where_its_expert_is(name, placed):
    found = run(name, placed)
    assert found.rank_loads.sum() == (IDS >= 0).sum()
    assert 1 <= found.nodes_per_token <= found.ranks_per_token <= 3
    assert found.cross_node_tokens <= found.cross_rank_tokens <= found.ranks_per_token
    again = run(name, placed)
    np.testing.assert_array_equal(found.rank_loads, again.rank_loads)


@pytest.mark.parametrize("name", splits.names())
def test_shares_sum_to_one(name, placed):
    counts = np.stack(
        [
            [np.bincount(IDS[g == SOURCE, i][IDS[g == SOURCE, i] >= 0], minlength=12) for i in range(2)]
            for g in range(4)
        ]
    ).astype(float)
    served = splits.build(name).serve(Batch(counts, np.arange(4) // 2), placed, rng_for(0, name))
    rows = served.placement.physical_to_logical
    for split in served.split:
        for layer in range(2):
            held = rows[layer] != EMPTY
            sums = np.bincount(rows[layer][held], split[layer][held], 12)
            np.testing.assert_allclose(sums, 1.0)


def test_the_program_balances_best(placed):
    imbalance = {
        name: run(name, placed).imbalance.mean() for name in ("even", "random", "lplb", "least_loaded")
    }
    # tokens are whole, so the best split of shares may lose half a token a copy
    assert imbalance["lplb"] <= min(imbalance.values()) + 0.02
    assert imbalance["least_loaded"] <= imbalance["even"] + 0.02


def test_near_copies_save_network(placed):
    assert run("same_node_first", placed).cross_node_tokens <= run("even", placed).cross_node_tokens


def test_llep_spills_what_exceeds_the_budget():
    placed = Placement([[0, 1, 2, 3]], 4, 2)
    tokens = np.array([80.0, 10.0, 5.0, 5.0])
    llep = splits.build("llep", {"min_tokens": 1})
    given = llep.layer(tokens, placed.rank_share[0])
    np.testing.assert_allclose(given.sum(axis=1), tokens)
    np.testing.assert_allclose(given.sum(axis=0), [50, 50])
    # 90 against 10: expert 0 sends 40, its rank keeps expert 1
    np.testing.assert_allclose(given[0], [40, 40])
    calm = splits.build("llep", {"min_tokens": 1, "imbalance_ratio": 2.0}).layer(tokens, placed.rank_share[0])
    np.testing.assert_allclose(calm[0], [80, 0])


def test_pouring_fills_the_lowest_first():
    np.testing.assert_allclose(filled_up(np.array([5.0, 1.0, 3.0]), 3.0), [0, 2.5, 0.5])
    np.testing.assert_allclose(filled_up(np.array([2.0, 2.0]), 0.0), [0, 0])
