"""Expected loads against counted ones, and what capacity drops."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.model.spec import MoeSpec
from moesim.network.traffic import routed_traffic
from moesim.placement.splits.hecate import near_first
from moesim.training.loads import balanced, group_load

PORTS = ("scale_up_out", "scale_up_in", "scale_out_out", "scale_out_in")


def drawn(moe: MoeSpec, tokens: int, rng: np.random.Generator) -> np.ndarray:
    """Experts of tokens, without replacement, within their groups."""
    key = rng.random((tokens, moe.num_experts))
    if moe.num_groups > 1:
        order = np.argsort(rng.random((tokens, moe.num_groups)), axis=1)[:, : moe.top_k_groups]
        closed = np.ones((tokens, moe.num_groups), dtype=bool)
        np.put_along_axis(closed, order, False, axis=1)
        key += 10.0 * np.repeat(closed, moe.num_experts // moe.num_groups, axis=1)
    return np.argsort(key, axis=1)[:, : moe.top_k]


@pytest.mark.parametrize("deduplicate", ["expert", "rank", "node"])
@pytest.mark.parametrize("groups", [1, 4])
def test_expected_ports_are_the_mean_of_counted_ones(deduplicate, groups):
    moe = MoeSpec(64, 6, 128, num_groups=groups, top_k_groups=2 if groups > 1 else 1)
    domain, each = np.arange(16) // 4, 512
    rng = np.random.default_rng(0)
    ids = drawn(moe, 16 * each, rng)[:, None, :]
    counted = routed_traffic(np.repeat(np.arange(16), each), ids // 4, domain, deduplicate).ports()
    expected = group_load(
        balanced(1, 64), moe, tokens_per_rank=each, domain=domain, deduplicate=deduplicate
    ).ports
    for name in PORTS:
        assert getattr(expected, name).mean() == pytest.approx(getattr(counted, name).mean(), rel=0.02)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.5, 4.0))
def test_no_expert_gets_more_than_its_capacity_and_nothing_appears(seed, factor):
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.full(16, 0.3), size=(2, 3))
    moe = MoeSpec(16, 2, 64)
    arguments = {"tokens_per_rank": 1000.0, "domain": np.zeros(4, dtype=np.int64), "deduplicate": "rank"}
    free = group_load(shares, moe, **arguments)
    capped = group_load(shares, moe, capacity_factor=factor, **arguments)
    most = factor * 1000.0 * 4 * 2 / 16
    assert (capped.load.rows <= 4 * most + 4).all()
    assert (capped.load.rows <= free.load.rows + 4).all()
    assert ((capped.dropped_fraction >= -1e-12) & (capped.dropped_fraction < 1)).all()
    assert free.dropped_fraction.max() == 0
    assert (free.overload >= 1 - 1e-12).all()


def test_one_rank_sends_nothing():
    moe = MoeSpec(8, 2, 64)
    load = group_load(balanced(1, 8), moe, tokens_per_rank=10, domain=np.zeros(1, int), deduplicate="node")
    assert all(getattr(load.ports, name).sum() == 0 for name in PORTS)
    assert load.load.rows.item() == replace(moe).top_k * 10


@pytest.mark.parametrize("deduplicate", ["expert", "rank", "node"])
def test_near_copies_are_preferred_as_counted(deduplicate):
    moe, each, ranks = MoeSpec(32, 4, 128), 512, 16
    domain, rng = np.arange(ranks) // 4, np.random.default_rng(0)
    held = np.zeros((32, ranks), np.bool_)
    held[np.arange(32), np.arange(32) // 2] = True  # at home
    held |= rng.random(held.shape) < 0.2
    ids = drawn(moe, ranks * each, rng)
    source = np.repeat(np.arange(ranks), each)
    goes = np.empty_like(ids)
    for token, rank in enumerate(source):
        for slot, expert in enumerate(ids[token]):
            copies = np.flatnonzero(held[expert])
            near = copies[domain[copies] == domain[rank]]
            goes[token, slot] = rank if held[expert, rank] else rng.choice(near if near.size else copies)
    counted = routed_traffic(source, goes[:, None, :], domain, deduplicate).ports()
    served = near_first(held, domain)
    load = group_load(
        balanced(1, 32),
        moe,
        tokens_per_rank=each,
        domain=domain,
        deduplicate=deduplicate,
        served=served[None, None],
        held=held[None, None],
    )
    # choices that go to one of several copies are not drawn without replacement, as the formula takes them
    near = 0.01 if deduplicate == "expert" else 0.05
    for name in PORTS:
        assert getattr(load.ports, name).mean() == pytest.approx(getattr(counted, name).mean(), rel=near)
    rows = np.bincount(goes.ravel(), minlength=ranks)
    assert load.load.rows.reshape(ranks) == pytest.approx(rows, rel=0.06)
    assert served.sum(axis=1) == pytest.approx(1.0)
