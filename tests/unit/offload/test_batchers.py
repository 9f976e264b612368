"""Batches by route: everybody is served once, and sharing experts pays."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_samples import small_trace

from moesim.memory.demand import demand_of, demand_of_batches
from moesim.offload import batchers
from moesim.offload.batchers import batched_steps, distinct_experts, routes_of


def routes(kinds, layers=2, experts=6):
    """Sample ``i`` uses expert ``kinds[i]`` in every layer."""
    return np.broadcast_to(
        np.asarray(kinds)[:, None, None] == np.arange(experts), (len(kinds), layers, experts)
    ).copy()


@settings(max_examples=40)
@given(
    st.sampled_from(batchers.names()), st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(1, 9)
)
def test_every_sample_is_in_one_batch_of_at_most_the_size(name, kinds, size):
    found = batchers.build(name).batches(routes(kinds), size)
    assert sorted(np.concatenate(found).tolist()) == list(range(len(kinds)))
    assert all(0 < len(batch) <= size for batch in found)


@pytest.mark.parametrize("name", ["similar_routes", "expert_cap"])
def test_equal_routes_end_up_together(name):
    kinds = [0, 1, 2, 3] * 4
    waiting = routes(kinds)
    aware, arrival = (batchers.build(policy, {"pool": 4}).batches(waiting, 4) for policy in (name, "arrival"))
    assert distinct_experts(waiting, aware) == 1
    assert distinct_experts(waiting, arrival) == 4


def test_a_cap_is_kept_and_the_oldest_goes_first():
    waiting = routes([5, 0, 1, 2, 3, 4, 0, 1])
    found = batchers.build("expert_cap", {"cap": 2}).batches(waiting, 8)
    assert found[0][0] == 0
    assert all(waiting[batch].any(axis=0).sum(axis=-1).mean() <= 2 for batch in found)


def test_passes_of_arrival_are_sequences_side_by_side():
    found = small_trace(tokens=64)
    passes = batched_steps(found, 4, 4, batchers.build("arrival"))
    assert [batch.tolist() for batch in passes[:2]] == [[0, 16, 32, 48], [1, 17, 33, 49]]
    ours = demand_of_batches(found, passes)
    rows = np.concatenate(passes)
    same = demand_of(found.take(rows), 4)
    assert (ours.ids == same.ids).all()
    assert (ours.tokens == same.tokens).all()
    assert routes_of(found).sum() == found.expert_ids.size
