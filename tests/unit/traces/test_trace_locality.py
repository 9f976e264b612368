"""Segments and caches by hand and against independent slow versions; shifts by hand."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_samples import public_trace, small_trace, trace_of

from moesim.errors import InputError
from moesim.traces.locality import (
    CACHE_POLICIES,
    cache_hit_fraction,
    segment_cache_hit_fraction,
    segment_routing_performance,
)
from moesim.traces.shifts import (
    batch_imbalance_ratio,
    co_activation,
    cosine_fraction,
    domain_cosine_fraction,
    drift,
    fan_out,
    jensen_shannon_nats,
    super_experts,
)
from moesim.traces.statistics import lru_hit_fraction


def test_srp_by_hand():
    # windows of two tokens: {0, 0} and {0, 1}; uses 2, 0 and 1, 1
    # threshold 1: three predictions of two tokens each, all four uses matched: 2*4 / (6 + 4)
    # threshold 2: one prediction, two matched: 2*2 / (2 + 4)
    trace = trace_of([[[0]], [[0]], [[1]]], 2)
    layers, model = segment_routing_performance(trace, 2)
    assert layers.tolist() == [0.8]
    assert model == 0.8
    assert segment_routing_performance(trace, 1)[1] == 1.0
    assert segment_routing_performance(trace, 4)[1] == 0.0
    # a request of its own has no window of two: only {0, 0} is left
    assert segment_routing_performance(trace_of([[[0]], [[0]], [[1]]], 2, lengths=[2, 1]), 2)[1] == 1.0


def test_srp_sums_layers_with_one_threshold():
    trace = trace_of([[[0], [0]], [[0], [1]]], 2)
    layers, model = segment_routing_performance(trace, 2)
    # layer 0: uses 2; layer 1: uses 1, 1. threshold 1: 2*4 / (6 + 4); threshold 2: 2*2 / (2 + 4)
    assert layers == pytest.approx([1.0, 2 * 2 / (4 + 2)])
    assert model == pytest.approx(0.8)


def test_sch_by_hand():
    # cache of two: 0 | 0 1 | hit 0 | 2 comes, 0 is needed again and 1 is not: 1 goes | hit 0
    trace = trace_of([[[0]], [[1]], [[0]], [[2]], [[0]]], 3)
    hits = segment_cache_hit_fraction(trace, 3, (1, 2, 3))
    assert hits[:, 0].tolist() == [0.0, 0.4, 0.4]
    # knowing only the present token it falls back to the least recently used: same here
    assert segment_cache_hit_fraction(trace, 1, (2,))[0, 0] == 0.4
    twice = trace_of([[[0]], [[1]], [[0]], [[2]], [[0]]] * 2, 3, lengths=[5, 5])
    assert segment_cache_hit_fraction(twice, 3, (2,))[0, 0] == 0.4  # every request starts empty


def slow_hits(ids, size, victim):
    """One layer, one cache, plain sets; ``victim(cache, token)`` names what goes."""
    cache, hits = set(), 0
    for token, chosen in enumerate(ids):
        hits += len(cache & set(chosen))
        cache |= set(chosen)
        while len(cache) > size:
            cache.remove(victim(cache - set(chosen), token))
    return hits / sum(map(len, ids))


streams = st.integers(0, 10_000).map(np.random.default_rng)


def stream(rng, tokens=40, experts=9, top_k=2):
    return [sorted(rng.choice(experts, top_k, replace=False).tolist()) for _ in range(tokens)]


@settings(max_examples=25)
@given(streams, st.integers(2, 8))
def test_caches_against_plain_sets(rng, size):
    ids = stream(rng)
    array = np.array(ids, np.uint8)[:, None]

    def last(expert, token):
        return max((t for t in range(token + 1) if expert in ids[t]), default=-1), expert

    def again(expert, token):
        return next((t for t in range(token + 1, len(ids)) if expert in ids[t]), len(ids))

    def uses(expert, token):
        return sum(expert in ids[t] for t in range(token + 1))

    def soon(expert, token):
        return sum(expert in chosen for chosen in ids[token : token + 5])

    lru = slow_hits(ids, size, lambda cache, token: min(cache, key=lambda e: last(e, token)))
    assert lru_hit_fraction(array, 9, [size])[0, 0] == pytest.approx(lru)
    lfu = slow_hits(
        ids, size, lambda cache, token: min(cache, key=lambda e: (uses(e, token), last(e, token)))
    )
    assert cache_hit_fraction(array, 9, [size], "lfu")[0, 0] == pytest.approx(lfu)
    belady = slow_hits(ids, size, lambda cache, token: max(cache, key=lambda e: again(e, token)))
    assert cache_hit_fraction(array, 9, [size], "belady")[0, 0] == pytest.approx(belady)
    assert belady >= max(lru, lfu) - 1e-12
    sch = slow_hits(
        ids, size, lambda cache, token: min(cache, key=lambda e: (soon(e, token), last(e, token)))
    )
    assert segment_cache_hit_fraction(trace_of(array, 9), 5, (size / 2,))[0, 0] == pytest.approx(sch)


def test_belady_is_the_best_of_all_choices():
    ids = [[0], [1], [2], [0], [1], [2], [1]]
    best = 0.0
    for picks in product(range(2), repeat=len(ids)):
        best = max(
            best, slow_hits(ids, 2, lambda cache, token, p=picks: sorted(cache)[p[token] % len(cache)])
        )
    found = cache_hit_fraction(np.array(ids, np.uint8)[:, None], 3, [2], "belady")
    assert found[0, 0] == pytest.approx(best)


def test_bad_cache_sizes_and_policies():
    ids = small_trace().expert_ids
    with pytest.raises(InputError, match="at least 2 experts"):
        cache_hit_fraction(ids, 8, [1], "lfu")
    with pytest.raises(InputError, match=", ".join(CACHE_POLICIES)):
        cache_hit_fraction(ids, 8, [2], "random")
    with pytest.raises(InputError, match="numbers >= 1"):
        segment_cache_hit_fraction(small_trace(), 4, (0.5,))
    with pytest.raises(InputError, match="segment_tokens"):
        segment_routing_performance(small_trace(), 0)


def test_pairs_ranks_and_super_experts_by_hand():
    trace = trace_of([[[0, 1]], [[0, 3]], [[2, 3]]], 4)
    assert co_activation(trace)[0].tolist() == [[2, 1, 0, 1], [1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 2]]
    assert fan_out(trace, 2).tolist() == pytest.approx([4 / 3])
    assert fan_out(trace, 4).tolist() == [2.0]
    assert super_experts(np.array([[1, 1, 1, 17], [5, 5, 5, 5]]), 3.0).tolist() == [1, 0]
    with pytest.raises(InputError, match="divisor of num_experts=4"):
        fan_out(trace, 3)


def test_empty_slots_need_no_rank():
    trace = trace_of([[[0, 255]], [[255, 255]]], 4)
    assert fan_out(trace, 2).tolist() == [0.5]
    assert co_activation(trace)[0, 0, 0] == 1


def test_distances_of_loads():
    same, other = np.array([2, 2, 0, 0]), np.array([0, 0, 5, 5])
    assert cosine_fraction(same, 3 * same) == pytest.approx(1.0)
    assert cosine_fraction(same, other) == 0.0
    assert jensen_shannon_nats(same, other) == pytest.approx(np.log(2))
    assert jensen_shannon_nats(same, 7 * same) == pytest.approx(0.0, abs=1e-12)


def test_drift_and_domains():
    ids = [[[0, 1]]] * 10 + [[[2, 3]]] * 10
    cosine, divergence = drift(trace_of(ids, 4), 5)
    assert cosine[:, 0].tolist() == pytest.approx([1.0, 0.0, 1.0])
    assert divergence[:, 0].tolist() == pytest.approx([0.0, np.log(2), 0.0], abs=1e-12)
    with pytest.raises(InputError, match="1 to 10"):
        drift(trace_of(ids, 4), 11)
    apart = domain_cosine_fraction(small_trace())
    assert apart.diagonal().tolist() == pytest.approx([1.0, 1.0])
    assert apart[0, 1] == apart[1, 0] < 1.0


def test_large_batches_are_as_imbalanced_as_the_trace():
    trace = small_trace(tokens=600, requests=6)
    curve = batch_imbalance_ratio(trace, 4, (1, 16, 600), np.random.default_rng(0), num_batches=8)
    assert (np.diff(curve.mean(axis=1)) < 0).all()
    whole = trace.counts().reshape(3, 4, 2).sum(axis=2)
    assert curve[-1] == pytest.approx(whole.max(axis=1) / whole.mean(axis=1))


def test_published_domain_distances():
    """Cosine of per-layer loads of two ESFT tasks lies between 0.59 and 0.73."""
    from moesim.traces.slices import merge

    traces = [
        trace_of(public_trace(f"esft_dsv2lite_{t}")["expert_ids"], 64) for t in ("law", "intent", "summary")
    ]
    apart = domain_cosine_fraction(merge(traces, domains=("a", "b", "c")))
    assert apart[np.triu_indices(3, 1)].min() > 0.58
    assert apart[np.triu_indices(3, 1)].max() < 0.74
