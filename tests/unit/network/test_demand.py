"""Transfers that meet on links: alone at their own pace, together at that of the link they share."""

import numpy as np
import pytest

from moesim.errors import InputError
from moesim.hardware import load_cluster
from moesim.network.demand import LinkPool, ring_traffic, together_s
from moesim.network.fabric import Fabric

MESSAGE = 1e9


def pool_of(name):
    cluster = load_cluster(name)
    return LinkPool.of(cluster, Fabric.of(cluster, cluster.num_devices))


@pytest.fixture(scope="module")
def pool():
    return pool_of("h200_x16")


def one_pair(pool, source, destination):
    traffic = np.zeros((16, 16))
    traffic[source, destination] = MESSAGE
    return pool.transfer(pool.link_bytes(traffic))


def test_a_transfer_alone_takes_what_its_slowest_link_needs(pool):
    transfer = one_pair(pool, 0, 8)
    slowest = (transfer.link_bytes / pool.capacity_bytes_per_s).max()
    assert together_s(pool, [transfer]) == pytest.approx([slowest], rel=1e-9)
    limited = pool.transfer(transfer.link_bytes, most_bytes_per_s=1e9)
    assert limited.seconds == pytest.approx(1.0)


def test_two_through_one_port_take_twice_as_long_and_those_apart_do_not(pool):
    first, second, apart = one_pair(pool, 0, 8), one_pair(pool, 1, 8), one_pair(pool, 3, 11)
    shared = together_s(pool, [first, second, apart])
    assert shared == pytest.approx([2 * first.seconds, 2 * first.seconds, first.seconds], rel=1e-6)


def test_the_shorter_of_two_leaves_the_link_to_the_longer(pool):
    long = one_pair(pool, 0, 8)
    short = pool.transfer(long.link_bytes / 4)
    found = together_s(pool, [long, short])
    assert found == pytest.approx([long.seconds * 1.25, long.seconds * 0.5], rel=1e-6)


def test_copies_from_the_host_meet_the_bytes_of_the_port_behind_the_same_link(pool):
    from_port = one_pair(pool, 8, 0)
    from_host = pool.transfer(pool.host_copy(0, MESSAGE, to_device=True))
    other_way = pool.transfer(pool.host_copy(0, MESSAGE, to_device=False))
    both = together_s(pool, [from_port, from_host])
    assert both.max() > 1.5 * max(from_port.seconds, from_host.seconds)
    against = together_s(pool, [from_port, other_way])
    assert against == pytest.approx([from_port.seconds, other_way.seconds], rel=1e-6)


@pytest.mark.parametrize("name", ["h200_x16", "l40s_x16_numa", "gb200_nvl72"])
def test_a_copy_from_the_host_crosses_its_memory_and_the_device_s_own_link(name):
    pool = pool_of(name)
    load = pool.host_copy(1, MESSAGE, to_device=True)
    crossed = [pool.names[link] for link in np.flatnonzero(load)]
    assert "host0 memory" in crossed
    assert any(name.endswith("rank1") for name in crossed)
    assert set(load[load > 0]) == {MESSAGE}


def test_links_of_the_topology_keep_their_numbers_and_carry_no_more_than_it_says():
    pool = pool_of("h200_x16")
    count = len(pool.topology.link_names)
    assert pool.names[:count] == pool.topology.link_names
    assert (pool.capacity_bytes_per_s[:count] <= pool.topology.capacity_bytes_per_s).all()
    traffic = np.random.default_rng(0).uniform(0, 1e6, (16, 16))
    np.testing.assert_array_equal(pool.link_bytes(traffic)[:count], pool.topology.link_bytes(traffic))


def test_bytes_of_a_ring_are_those_of_an_all_reduce():
    traffic = ring_traffic([0, 4, 8, 12], 1000.0, 16)
    assert np.count_nonzero(traffic) == 4
    assert traffic.sum() == pytest.approx(4 * 2 * 3 / 4 * 1000)
    assert traffic[12, 0] > 0
    assert not ring_traffic([3], 1000.0, 16).any()


def test_a_demand_holds_the_links_of_all_members_once(pool):
    ranks = np.arange(16)
    transfer = pool.transfer(pool.link_bytes(ring_traffic(ranks, MESSAGE, 16)))
    demand = pool.demand(transfer, ranks, 16)
    named = demand.links[demand.links >= 0]
    assert sorted(named) == np.flatnonzero(transfer.link_bytes).tolist()
    np.testing.assert_allclose(
        demand.rate[demand.links >= 0] * transfer.seconds, transfer.link_bytes[named], rtol=1e-9
    )


def test_no_bytes_and_negative_bytes_are_told(pool):
    for wrong in (np.zeros(len(pool.names)), np.full(len(pool.names), -1.0)):
        with pytest.raises(InputError, match="link_bytes"):
            pool.transfer(wrong)
