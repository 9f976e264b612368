"""Caches against brute force, against each other, and against the optimum."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.errors import InputError
from moesim.evidence import rng_for
from moesim.memory.caches import ExpertCache, cache_policies, replay
from moesim.memory.caches.cache import check_slots
from moesim.memory.demand import Demand, demand_of
from moesim.traces.generators import generators

POLICIES = cache_policies.names()


def demand(seed, passes=40, layers=2, experts=9, top_k=2, skew=1.0, empty=0.0):
    rng = np.random.default_rng(seed)
    appeal = rng.gumbel(size=(passes, layers, experts)) - skew * np.log(1 + np.arange(experts))
    ids = np.argsort(-appeal, axis=-1)[..., :top_k].astype(np.int32)
    ids[rng.random(ids.shape) < empty] = experts
    starts = np.zeros(passes, bool)
    starts[:: passes // 3] = True
    weights = rng.random(ids.shape).astype(np.float32)
    return Demand(experts, ids, (ids < experts).astype(np.int32), starts, weights)


def brute_force_hits(wanted, size, victim):
    """One layer, plain lists: everything missing is loaded, `victim` names who leaves."""
    held, hits = [], 0
    for at, ids in enumerate(wanted):
        hits += sum(e in held for e in ids)
        for expert in ids:
            if expert not in held:
                if len(held) == size:
                    held.remove(victim([h for h in held if h not in ids], at))
                held.append(expert)
    return hits


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(2, 8), st.sampled_from(POLICIES), st.floats(0, 0.4))
def test_nothing_beats_belady(seed, slots, name, empty):
    wanted = demand(seed, empty=empty)
    policy = cache_policies.build(name)
    free = {"bypass": policy.bypasses, "warm": policy.bypasses}
    bound = replay(wanted, cache_policies.build("belady", free), slots)
    found = replay(wanted, policy, slots, seed=seed)
    assert (found.hits <= bound.hits).all()
    assert (found.lookups == bound.lookups).all()


@pytest.mark.parametrize("name", POLICIES)
def test_a_cache_of_all_experts_misses_each_once(name):
    wanted = demand(3, passes=300, skew=0.2)
    policy = cache_policies.build(name)
    found = replay(wanted, policy, wanted.num_experts)
    if policy.initial(wanted, np.full(2, 9)) is not None and policy.bypasses:
        assert (found.hits == found.lookups).all()
    else:
        assert (found.lookups - found.hits == wanted.num_experts).all()


@pytest.mark.parametrize("slots", [2, 4, 6])
def test_lru_and_belady_agree_with_plain_lists(slots):
    wanted = demand(5, layers=1, passes=120, skew=0.5)
    ids = wanted.ids[:, 0].tolist()

    def last_use(expert, at):
        return max(t * 2 + ids[t].index(expert) for t in range(at) if expert in ids[t])

    def next_use(expert, at):
        return next((t for t in range(at, len(ids)) if expert in ids[t]), len(ids))

    lru = brute_force_hits(ids, slots, lambda held, at: min(held, key=lambda e: last_use(e, at)))
    best = brute_force_hits(ids, slots, lambda held, at: max(held, key=lambda e: next_use(e, at)))
    assert replay(wanted, cache_policies.build("lru"), slots).hits.tolist() == [lru]
    assert replay(wanted, cache_policies.build("belady"), slots).hits.tolist() == [best]


@pytest.mark.parametrize("name", POLICIES)
def test_layer_by_layer_is_all_layers_at_once(name):
    if name == "random":
        pytest.skip("draws in another order")
    wanted = demand(7)
    policy, slots = cache_policies.build(name), np.array([3, 5])
    together = replay(wanted, policy, slots)
    cache = ExpertCache(policy, wanted, slots, rng_for(0, "memory/cache"))
    hits = np.zeros(2, int)
    for at in range(wanted.num_passes):
        if wanted.new_sequence[at]:
            cache.ranking.begin_sequence()
        for layer in range(2):
            row = np.array([[layer]])
            hits[layer] += cache.serve(row, wanted.ids[at, [layer]], at, wanted.weights[at, [layer]]).sum()
            inside = cache.contents[layer][cache.contents[layer] < wanted.num_experts]
            assert inside.size <= slots[layer]
            assert len(set(inside.tolist())) == inside.size
            assert (cache.slot_of[layer, inside] >= 0).all()
    assert hits.tolist() == together.hits.tolist()


def test_pool_of_all_layers_holds_as_much_and_its_optimum_is_no_worse():
    wanted = demand(11, passes=100)
    apart = replay(wanted, cache_policies.build("belady"), 4).hits.sum()
    pool = replay(wanted.pooled(), cache_policies.build("belady"), 8)
    assert pool.hits.sum() >= apart
    assert pool.lookups.sum() == wanted.tokens.sum()


def test_pinned_experts_never_miss():
    wanted = demand(13, passes=200)
    policy = cache_policies.build("pinned", {"experts": [[0, 8], [1, 7]]})
    cache = ExpertCache(policy, wanted, np.array([3, 3]), rng_for(0, "x"))
    for at in range(wanted.num_passes):
        cache.serve(cache.all_rows, wanted.ids[at], at)
        assert cache.slot_of[0, 8] >= 0
        assert cache.slot_of[1, 7] >= 0


def test_passes_of_many_tokens_ask_for_each_expert_once():
    trace = generators.build("zipf", {}).generate(64, 3, 16, 2, np.random.default_rng(0))
    wanted = demand_of(trace, 8)
    assert wanted.num_passes == 8
    assert wanted.tokens.sum() == 64 * 3 * 2
    for at in range(8):
        for layer in range(3):
            real = wanted.ids[at, layer][wanted.ids[at, layer] < 16]
            assert sorted(real) == sorted(set(trace.expert_ids[at * 8 : at * 8 + 8, layer].ravel().tolist()))


def test_a_cache_below_one_tokens_experts_is_refused():
    with pytest.raises(InputError, match="got 1; accepted: at least 2"):
        check_slots(1, demand(0), field="memory.cache.slots_per_layer")
