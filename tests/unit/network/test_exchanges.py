"""Laws of collectives and exchanges: curves do not dip, choices hold, traffic ends with its busiest link."""

from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.engine import Meet, Part, Program, durations_ps, events
from moesim.errors import InputError
from moesim.evidence import Estimate, rng_for
from moesim.hardware import load_cluster
from moesim.network.all_to_all import uneven_all_to_all_s
from moesim.network.collectives.group import all_gather, all_reduce, broadcast, chosen_all_reduce
from moesim.network.collectives.sparse import sparse_all_gather_s, sparse_reduce_scatter_s, sparse_traffic
from moesim.network.curves import collective_s
from moesim.network.demand import LinkPool, Transfer
from moesim.network.exchanges.base import Load, exchange, exchanges
from moesim.network.fabric import Communication, Fabric
from moesim.network.faults import Faults
from moesim.network.fit.least_squares import fit_positive
from moesim.network.fit.monotone import fit_monotone, non_negative
from moesim.network.fit_file import fitted_fabrics, network_fits
from moesim.network.topology import Topology
from moesim.network.traffic import routed_traffic
from moesim.units import PS_PER_S

SIZES = np.geomspace(256, 2**31, 240)


@pytest.mark.parametrize("device", fitted_fabrics())
def test_curves_never_dip_and_end_in_proportion(device):
    for fit in network_fits(device).collectives:
        for ranks in (2, 3, 4, 6, 8, 16):
            seconds, sigma = collective_s(fit, SIZES, ranks, None)
            assert (np.diff(seconds) >= -1e-15).all(), (device, fit.library, ranks)
            assert sigma > 0
        one, two = collective_s(fit, np.array([2.0**34, 2.0**35]), 2, None)[0]
        assert two == pytest.approx(2 * one, rel=0.01)


def test_small_messages_do_not_move_at_the_peak_rate():
    fabric = Fabric.of(load_cluster("h200_x8"), 8)
    small, large = all_gather(np.array([8192.0, 2.0**28]), np.arange(8), fabric).seconds
    assert 8192 / small < 0.01 * 2.0**28 / large


def test_a_faster_link_shortens_large_messages_only():
    cluster = load_cluster("h200_x8")
    link = cluster.node.scale_up.model_copy(update={"bandwidth_bytes_per_s": 9e11})
    faster = cluster.model_copy(update={"node": cluster.node.model_copy(update={"scale_up": link})})
    sizes = np.array([512.0, 2.0**28])
    before, after = (all_reduce(sizes, np.arange(8), Fabric.of(c, 8)).seconds for c in (cluster, faster))
    assert after[0] == pytest.approx(before[0], rel=0.01)
    assert after[1] == pytest.approx(before[1] / 2, rel=0.05)


def test_auto_takes_the_fastest_measured_library_and_names_it():
    fabric = Fabric.of(load_cluster("h200_x8"), 8)
    name, best = chosen_all_reduce(2.0**20, np.arange(8), fabric)
    for other in ("nccl", "vllm", "sglang", "tensorrt_llm"):
        asked = Fabric.of(load_cluster("h200_x8"), 8, Communication(all_reduce=other))
        found, estimate = chosen_all_reduce(2.0**20, np.arange(8), asked)
        assert found == other
        assert best.seconds <= estimate.seconds
        assert (estimate.seconds == best.seconds) == (other == name)


def test_between_nodes_every_member_of_a_node_brings_its_port():
    """A ring over whole nodes crosses each of them on all rails; one over single members on one of them."""
    fabric = Fabric.of(load_cluster("h200_x32"), 32)
    payload = 2.0**30
    alone = all_gather(payload, np.arange(0, 32, 8), fabric).seconds
    together = all_gather(payload, np.arange(32), fabric).seconds
    assert alone == pytest.approx(payload * 3 / 4 / fabric.nic_rate, rel=0.01)
    rails = payload * 31 / 32 / (8 * fabric.nic_rate)
    assert rails <= together < 1.2 * rails


@pytest.mark.parametrize("name", ["ring", "tree", "hierarchical"])
def test_between_nodes_auto_is_no_slower_than_any_usual_algorithm(name):
    cluster = load_cluster("h200_x32")
    auto = all_reduce(2.0**26, np.arange(32), Fabric.of(cluster, 32))
    named = all_reduce(2.0**26, np.arange(32), Fabric.of(cluster, 32, Communication(all_reduce=name)))
    assert auto.seconds <= named.seconds


@pytest.mark.parametrize("name", ["ring", "tree", "one_shot", "two_shot", "in_network"])
def test_formulas_move_at_least_what_they_must(name):
    """No rank can sum a buffer without taking in one buffer, whatever the algorithm."""
    fabric = Fabric.of(load_cluster("h200_x8"), 8, Communication(all_reduce=name))
    payload = 2.0**28
    seconds = all_reduce(payload, np.arange(8), fabric).seconds
    assert seconds >= payload / fabric.scale_up_bytes_per_s


def test_an_algorithm_that_does_not_apply_is_told():
    fabric = Fabric.of(load_cluster("h200_x32"), 32, Communication(all_reduce="one_shot"))
    with pytest.raises(InputError, match="32 ranks in 4 scale-up domains"):
        all_reduce(1e6, np.arange(32), fabric)
    assert broadcast(1e6, np.arange(4), fabric).seconds > 1e6 / fabric.scale_up_bytes_per_s


@lru_cache
def load_of(name, tokens, phase="dispatch", deduplicate="node", seed=0):
    cluster = load_cluster(name)
    ranks = cluster.num_devices
    rng = rng_for(seed, "test/exchange")
    source = np.repeat(np.arange(ranks), tokens)
    chosen = np.argsort(rng.random((ranks * tokens, 256)), axis=1)[:, :8] * ranks // 256
    domain = np.asarray(cluster.domain_of(np.arange(ranks)))
    traffic = routed_traffic(source, chosen[:, None], domain, deduplicate)
    ports = traffic.ports() if phase == "dispatch" else traffic.ports().transposed()
    return Load(phase, ports, 7168.0, np.arange(ranks), tokens, 256, deduplicate)


@pytest.mark.parametrize("name", exchanges.names())
def test_every_exchange_grows_with_tokens(name):
    for cluster_name in ("h200_x8", "h200_x32", "gb200_nvl72"):
        cluster = load_cluster(cluster_name)
        for deduplicate in ("expert", "rank", "node"):
            fabric = Fabric.of(cluster, cluster.num_devices, Communication(deduplicate=deduplicate))
            times = []
            for tokens in (4, 32, 128):
                load = load_of(cluster_name, tokens, deduplicate=deduplicate)
                found = exchanges.build(name).price(load, fabric)
                if found is not None:
                    times.append(float(found.seconds[0]))
            assert times == sorted(times)
            assert all(time > 0 for time in times)


def test_more_sms_shorten_a_large_exchange_until_the_nic_is_full():
    cluster = load_cluster("h200_x32")
    load = load_of("h200_x32", 1024)
    times = [
        float(
            exchange(load, Fabric.of(cluster, 32, Communication("auto", "deepep_normal", "node", sms)))[
                1
            ].seconds[0]
        )
        for sms in (4, 8, 16, 24, 48)
    ]
    assert times == sorted(times, reverse=True)
    assert times[0] / times[1] > 1.5
    assert times[3] / times[4] < 1.2


def test_half_a_nic_slows_an_exchange_and_a_dead_one_crowds_its_neighbour():
    cluster = load_cluster("h200_x32")
    load = load_of("h200_x32", 1024)
    choice = Communication(exchange="deepep_normal", deduplicate="node")
    sound, half, dead = (
        float(exchange(load, Fabric.of(cluster, 32, choice, Faults(nic_speed=speed)))[1].seconds[0])
        for speed in ({}, {3: 0.5}, {3: 0.0})
    )
    assert sound < half == pytest.approx(dead, rel=0.05)


def test_an_exchange_that_does_not_apply_is_told():
    cluster = load_cluster("h200_x32")
    fabric = Fabric.of(cluster, 32, Communication(exchange="nvlink_one_sided", deduplicate="node"))
    with pytest.raises(InputError, match="32 ranks in 4 scale-up domains with network.deduplicate node"):
        exchange(load_of("h200_x32", 8), fabric)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_uneven_all_to_all_ends_with_its_busiest_link(seed):
    rng = np.random.default_rng(seed)
    topology = Topology.of(load_cluster("l40s_x32_oversubscribed"))
    traffic = rng.integers(0, 1000, (32, 32)) * (rng.random((32, 32)) < 0.3) * 1e5
    np.fill_diagonal(traffic, 0)
    seconds = uneven_all_to_all_s(traffic, topology)
    busiest = (topology.link_bytes(traffic) / topology.capacity_bytes_per_s).max()
    slack = max(topology.path_latency_s(0, r) for r in range(1, 32))
    assert busiest <= seconds.max() + 1e-12
    assert seconds.max() <= busiest + 2 * slack
    idle = (traffic.sum(0) + traffic.sum(1)) == 0
    assert (seconds[idle] == 0).all()


def test_sparse_gather_of_everything_is_dense_and_of_nothing_free():
    topology = Topology.of(load_cluster("h200_x8"))
    owner = np.arange(16) // 2
    everywhere = np.ones((16, 8), dtype=bool)
    dense = sparse_all_gather_s(owner, everywhere, 1e8, topology)
    assert dense.max() == pytest.approx(14 * 1e8 / 450e9, rel=0.01)
    assert sparse_traffic(owner, everywhere, 1e8).sum() == 16 * 7 * 1e8
    own = np.arange(8) == owner[:, None]
    assert sparse_all_gather_s(owner, own, 1e8, topology).max() == 0
    some = rng_for(0, "test/sparse").random((16, 8)) < 0.3
    np.testing.assert_allclose(
        sparse_all_gather_s(owner, some, 1e8, topology), sparse_reduce_scatter_s(owner, some, 1e8, topology)
    )


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_non_negative_least_squares_meets_its_conditions(seed):
    rng = np.random.default_rng(seed)
    design, target = rng.normal(size=(12, 5)), rng.normal(size=12)
    found = non_negative(design, target)
    gradient = design.T @ (design @ found - target)
    assert (found >= 0).all()
    assert (gradient >= -1e-6).all()
    assert np.abs(gradient * found).max() < 1e-6


def test_fitters_find_what_made_the_data():
    x = np.linspace(0, 6, 30)
    values, shifts = fit_monotone(x, np.maximum(x - 3, 0) + 1.0, np.linspace(0, 6, 7), np.zeros((30, 0)))
    np.testing.assert_allclose(values, [1, 1, 1, 1, 2, 3, 4], atol=0.02)
    assert len(shifts) == 0
    sizes = np.geomspace(1, 1e4, 40)
    measured = np.log(3.0 + sizes / 50.0)
    found = fit_positive(
        lambda p: np.log(p[0] + sizes / p[1]) - measured,
        np.array([1.0, 10.0]),
        np.array([0.1, 1.0]),
        np.array([100.0, 1000.0]),
    )
    np.testing.assert_allclose(found, [3.0, 50.0], rtol=1e-3)


def test_gradients_and_a_dispatch_over_the_same_ports_slow_each_other():
    """Two exchanges that each fill the NICs take twice as long together; inside the nodes nothing changes."""
    cluster = load_cluster("h200_x16")
    pool, topology = LinkPool.of(cluster, Fabric.of(cluster, 16)), Topology.of(cluster)
    rank = np.arange(16)
    remote = (rank[:, None] // 8 != rank // 8) * 1e8
    local = ((rank[:, None] // 8 == rank // 8) & (rank[:, None] != rank)) * 1e8
    group = np.zeros(16, dtype=np.int64)

    def makespan(*exchanges):
        streams = tuple(name for name, _ in exchanges)
        instructions = []
        for name, traffic in exchanges:
            seconds = float(uneven_all_to_all_s(traffic, topology).max())
            part = Part(name, "all_to_all", Estimate(seconds, "all_to_all", "assumed", 0.0))
            demand = pool.demand(Transfer(pool.link_bytes(traffic), seconds), rank, 16)
            instructions.append(Meet(name, group, (part,), demand=demand))
        program = Program(16, streams, tuple(instructions))
        return events.simulate(program, durations_ps(program)).makespan_ps / PS_PER_S

    alone = makespan(("dispatch", remote))
    assert makespan(("dispatch", remote), ("gradients", remote)) == pytest.approx(2 * alone, rel=0.01)
    assert makespan(("dispatch", remote), ("gather", local)) == pytest.approx(alone, rel=1e-6)
