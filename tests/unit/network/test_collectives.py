import numpy as np
import pytest

from moesim.network.all_to_all import port_bound_s
from moesim.network.collectives.ring import ring_all_gather_s, ring_all_reduce_s
from moesim.network.collectives.tree import tree_all_reduce_s


def ring_step_by_step(payload_bytes, ranks, bandwidth, latency):
    """Each step every rank passes one chunk to its neighbour; reduce-scatter, then all-gather."""
    seconds = 0.0
    for _ in range(2 * (ranks - 1)):
        seconds += latency + payload_bytes / ranks / bandwidth
    return seconds


@pytest.mark.parametrize("ranks", [1, 2, 3, 8, 64])
def test_ring_equals_its_steps(ranks):
    expected = ring_step_by_step(6.4e7, ranks, 4e11, 2e-6)
    assert ring_all_reduce_s(6.4e7, ranks, bandwidth_bytes_per_s=4e11, latency_s=2e-6) == pytest.approx(
        expected
    )


def test_all_reduce_is_reduce_scatter_then_all_gather():
    half = ring_all_gather_s(1e6, 8, bandwidth_bytes_per_s=1e11, latency_s=1e-6)
    assert ring_all_reduce_s(1e6, 8, bandwidth_bytes_per_s=1e11, latency_s=1e-6) == pytest.approx(2 * half)


def test_tree_wins_small_messages_and_ring_large_ones():
    link = {"bandwidth_bytes_per_s": 4e11, "latency_s": 2e-6}
    assert tree_all_reduce_s(1e3, 64, **link) < ring_all_reduce_s(1e3, 64, **link)
    assert ring_all_reduce_s(1e9, 4, **link) < tree_all_reduce_s(1e9, 4, **link)


def test_one_rank_costs_nothing():
    assert ring_all_reduce_s(1e6, 1, bandwidth_bytes_per_s=1e9, latency_s=1e-6) == 0
    assert tree_all_reduce_s(1e6, 1, bandwidth_bytes_per_s=1e9, latency_s=1e-6) == 0


def test_port_bound_is_free_without_bytes_and_linear_with():
    got = port_bound_s(np.array([0.0, 1e9, 2e9]), bandwidth_bytes_per_s=1e9, latency_s=0.5)
    np.testing.assert_allclose(got, [0.0, 1.5, 2.5])
