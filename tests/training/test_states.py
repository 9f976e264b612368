"""States of a parameter: bytes, traffic and updates."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.errors import InputError
from moesim.training.states import (
    SHARED_OUT,
    Host,
    States,
    Tier,
    kept_bytes,
    offloaded_update_s,
    prefetched_s,
    step_traffic,
    update_s,
)

ORDER = ("none", "zero1", "zero2", "zero3")


@pytest.mark.parametrize(
    ("states", "replicas", "expected"),
    [
        (States("none"), 8, 18),
        (States("zero1"), 8, 6 + 12 / 8),
        (States("zero1", gradients="bf16"), 4, 4 + 12 / 4),
        (States("zero2"), 4, 2 + 16 / 4),
        (States("zero3"), 16, 18 / 16),
        (States("zero1", gradients="bf16", master="remainder", moments="bf16"), 1, 10),
        (States("none", master="none", moments="bf16", num_moments=1), 1, 2 + 4 + 2),
    ],
)
def test_bytes_of_a_parameter(states, replicas, expected):
    assert kept_bytes(states, replicas).device == pytest.approx(expected)


@given(st.integers(1, 512), st.sampled_from(["bf16", "fp32"]), st.floats(0, 1))
def test_more_sharding_never_keeps_more(replicas, gradients, offload):
    sizes = [
        kept_bytes(States(name, gradients=gradients, offload_fraction=offload), replicas).device
        for name in ORDER
    ]
    assert all(more <= less + 1e-12 for less, more in zip(sizes, sizes[1:], strict=False))
    assert kept_bytes(States("fsdp"), replicas) == kept_bytes(States("zero3"), replicas)


@given(st.floats(0, 1), st.integers(1, 64))
def test_offload_moves_and_loses_nothing(offload, replicas):
    here, there = (kept_bytes(States(offload_fraction=f), replicas) for f in (0.0, offload))
    assert there.optimizer + there.host == pytest.approx(here.optimizer)
    assert there.host == pytest.approx(offload * 12 / replicas)


def test_a_quantised_copy_is_kept_beside_the_parameters():
    assert kept_bytes(States(), 1, "fp8").weights == 3
    assert kept_bytes(States(), 1, "bf16").weights == 2


def test_traffic_of_a_step():
    counts = {name: step_traffic(States(name), 8) for name in SHARED_OUT}
    assert (counts["none"].gathers, counts["none"].reductions, counts["none"].sharded) == (0, 1, False)
    assert (counts["zero1"].gathers, counts["zero1"].reductions) == (1, 1)
    assert (counts["zero2"].gathers, counts["zero2"].reductions) == (1, 8)
    assert (counts["zero3"].gathers, counts["zero3"].reductions) == (16, 8)


def test_update_is_bound_by_memory():
    # 4 read, 12 read and written, 2 written
    assert update_s(States(), 1e9, 3e12) == pytest.approx(1e9 * 30 / 3e12)
    assert update_s(States(offload_fraction=1.0), 1e9, 3e12) == 0


def test_offloaded_update_crosses_the_link_twice():
    host = Host(link_bytes_per_s=25e9, dram_bytes_per_s=50e9, flops_per_s=1e12)
    states = States(offload_fraction=1.0)
    alone = offloaded_update_s(states, 1e9, host)
    assert alone == pytest.approx(4 / 25 + 2 / 25 + 30 / 50)
    assert offloaded_update_s(states, 1e9, host, overlapped=True) == pytest.approx(30 / 50)


def tier(*sizes, rate=1.0):
    return Tier("host", np.array(sizes, dtype=float), rate)


def test_prefetch_by_hand():
    # fetches of 2 under computes of 3: only the first one shows; of 5 they set the pace
    assert prefetched_s([3, 3, 3], [tier(2, 2, 2)]) == 2 + 9
    assert prefetched_s([3, 3, 3], [tier(5, 5, 5)]) == 15 + 3
    assert prefetched_s([3, 3, 3], [tier(2, 2, 2)], ahead=0) == 15
    assert prefetched_s([3, 3, 3], []) == 9


@given(
    st.lists(st.tuples(st.floats(0, 9), st.floats(0, 9), st.floats(0, 9)), min_size=1, max_size=6),
    st.integers(1, 6),
)
def test_prefetch_lies_between_its_bounds(layers, ahead):
    compute, first, second = (np.array(column) for column in zip(*layers, strict=True))
    tiers = [tier(*first), tier(*second)]
    seconds = prefetched_s(compute, tiers, ahead=ahead)
    assert seconds >= max(compute.sum(), first.sum(), second.sum()) - 1e-9
    assert seconds <= compute.sum() + np.maximum(first, second).sum() + 1e-9
    assert prefetched_s(compute, tiers, ahead=ahead + 1) <= seconds + 1e-9


def test_wrong_states_name_every_problem():
    with pytest.raises(InputError) as caught:
        States(sharding="zero4", gradients="bf17", offload_fraction=2.0)
    text = str(caught.value)
    assert "did you mean 'zero" in text
    assert "states.gradients" in text
    assert "between 0 and 1" in text
