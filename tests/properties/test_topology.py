"""Laws of the cluster graph: class-wise sums equal pair-wise sums, and paths are what a search would find."""

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import generators

from moesim.errors import InputError
from moesim.files import Tree
from moesim.hardware import load_cluster
from moesim.network.faults import Faults
from moesim.network.topology import Topology, graph

FABRICS = {
    "nvswitch": {"bandwidth_bytes_per_s": 4.5e11, "latency_s": 1.5e-6},
    "nvlink_pairs": {"bandwidth_bytes_per_s": 5.6e10, "latency_s": 1.5e-6},
    "xgmi_mesh": {"bandwidth_bytes_per_s": 4.48e11, "latency_s": 2e-6},
    "pcie": None,
}


TORI = [(1,), (2,), (3,), (4,), (5,), (6,), (2, 2), (2, 3), (3, 2), (1, 2, 2), (1, 2, 3)]
SOCKETS = {"numa_domains": 2, "socket_link": {"bandwidth_bytes_per_s": 4e10, "latency_s": 2e-7}}
HOSTS = [{}, SOCKETS, {"gpudirect": False}]


def cluster_of(fabric, devices, nics, nodes, domain=1, per_switch=1, host=None, **scale_out):
    host = dict(host or {})
    node = {
        "profile": "h200_x8",
        "num_devices": devices,
        "num_nics": nics,
        "scale_up": FABRICS[fabric],
        "scale_up_kind": fabric,
        "gpudirect": host.pop("gpudirect", True),
        "host": {"devices_per_pcie_switch": per_switch} | host,
    }
    shape = {"node": node, "num_nodes": nodes, "scale_up_domain_nodes": domain}
    return load_cluster(Tree(shape | {"scale_out": {"latency_s": 5e-7} | scale_out}))


@st.composite
def clusters(draw, kinds=("rail_optimised", "fat_tree")):
    fabric = draw(st.sampled_from(sorted(FABRICS)))
    devices, nodes = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    nics = draw(st.sampled_from([n for n in range(1, 7) if devices % n == 0 or n % devices == 0]))
    domain = draw(st.integers(1, 3)) if fabric == "nvswitch" else 1
    scale_out = {"kind": draw(st.sampled_from(kinds))}
    scale_out["oversubscription_ratio"] = draw(st.sampled_from([1.0, 2.0, 4.0]))
    if scale_out["kind"] != "torus" and (scale_out["kind"] != "rail_optimised" or draw(st.booleans())):
        scale_out["nodes_per_leaf"] = draw(st.integers(1, 3))
    if scale_out["kind"] in {"fat_tree_3", "dragonfly"}:
        scale_out["leaves_per_pod"] = draw(st.integers(1, 3))
        scale_out["upper_oversubscription_ratio"] = draw(st.sampled_from([1.0, 2.0]))
    if scale_out["kind"] == "torus":
        scale_out["dimensions"] = draw(st.sampled_from([d for d in TORI if np.prod(d) == nodes]))
    if len(kinds) > 2:
        scale_out["multipath"] = draw(st.sampled_from(["even", "hash"]))
        if scale_out["kind"] == "fat_tree":
            scale_out["num_spines"] = draw(st.integers(1, 3))
    host = draw(st.sampled_from(HOSTS if len(kinds) > 2 else HOSTS[:1]))
    return cluster_of(fabric, devices, nics, nodes, domain, draw(st.integers(1, 3)), host, **scale_out)


def pairwise(topology, traffic):
    loads = np.zeros(len(topology.link_names))
    for source in range(topology.num_ranks):
        for destination in range(topology.num_ranks):
            for link, share in topology.shares(source, destination):
                loads[link] += share * traffic[source, destination]
    return loads


ALL_KINDS = ("rail_optimised", "fat_tree", "fat_tree_3", "dragonfly", "torus")


@given(clusters(ALL_KINDS), generators)
@settings(max_examples=40)
def test_link_bytes_of_every_network_equal_the_sum_over_pairs(cluster, rng):
    ports = cluster.num_nodes * cluster.node.num_rails
    dead = {} if cluster.node.num_rails < 2 else {int(rng.integers(ports)): 0.0}
    topology = Topology.of(cluster, Faults(nic_speed=dead))
    traffic = rng.integers(0, 1000, (topology.num_ranks, topology.num_ranks))
    loads = topology.link_bytes(traffic)
    np.testing.assert_allclose(loads, pairwise(topology, traffic), rtol=1e-12, atol=1e-6)
    for port in dead:
        assert loads[topology.blocks["nic_out"]][port] == 0


@given(clusters(ALL_KINDS), st.data())
@settings(max_examples=40)
def test_paths_of_every_network_hang_together(cluster, data):
    """Each of a pair's equal paths leads from one rank to the other, link by link of the graph."""
    topology = Topology.of(cluster)
    ranks = st.integers(0, topology.num_ranks - 1)
    source, destination = data.draw(ranks), data.draw(ranks)
    if source == destination:
        return
    own = {link for link, _ in topology.shares(source, destination)}
    walkable = nx.DiGraph((a, b) for a, b, link in topology.edges if link in own or link < 0)
    assert nx.has_path(walkable, f"rank{source}", f"rank{destination}")
    out = [link for link in own if topology.link_names[link].startswith((f"rank{source} ", "node"))]
    assert out
    assert nx.shortest_path_length(walkable, f"rank{source}", f"rank{destination}") <= len(own) + 2


def test_torus_takes_the_shorter_way_and_both_when_equal():
    cluster = cluster_of("nvswitch", 1, 1, 4, kind="torus", dimensions=[4])
    topology = Topology.of(cluster)
    core = topology.blocks["core"]

    def crossed(a, b):
        return sorted(
            (topology.link_names[k], s) for k, s in topology.shares(a, b) if core.start <= k < core.stop
        )

    assert crossed(0, 3) == [("leaf0 -> leaf3", 1.0)]
    assert {share for _, share in crossed(0, 2)} == {0.5}
    assert len(crossed(0, 2)) == 4


def test_three_tiers_oversubscribe_in_turn():
    tree = {
        "kind": "fat_tree_3",
        "nodes_per_leaf": 2,
        "leaves_per_pod": 2,
        "upper_oversubscription_ratio": 2.0,
    }
    topology = Topology.of(cluster_of("nvswitch", 2, 2, 8, oversubscription_ratio=2.0, **tree))
    rate = {
        name: float(c) for name, c in zip(topology.link_names, topology.capacity_bytes_per_s, strict=True)
    }
    ports = 4 * 50e9
    assert rate["leaf0 -> pod0"] == ports / 2
    assert rate["pod0 -> core"] == 2 * ports / 2 / 2


def test_hash_sends_a_pair_over_one_spine_and_even_over_all():
    tree = {"kind": "fat_tree", "nodes_per_leaf": 1, "num_spines": 4}
    for multipath, count in (("even", 4), ("hash", 1)):
        topology = Topology.of(cluster_of("nvswitch", 2, 2, 2, multipath=multipath, **tree))
        spines = [
            topology.link_names[k] for k in topology.path(0, 2) if topology.link_names[k].startswith("leaf")
        ]
        assert len([name for name in spines if "-> spine" in name]) == count


def test_slow_link_loses_capacity_and_dead_port_its_load():
    cluster = load_cluster("h200_x32")
    sound, hurt = Topology.of(cluster), Topology.of(cluster, Faults(nic_speed={3: 0.5, 4: 0.0}))
    ratio = hurt.capacity_bytes_per_s / sound.capacity_bytes_per_s
    assert np.flatnonzero(ratio < 1).tolist() == [
        sound.blocks[f"nic_{way}"].start + 3 for way in ("out", "in")
    ]
    loads = hurt.link_bytes(np.full((32, 32), 1.0))[hurt.blocks["nic_out"]]
    assert loads[:8].tolist() == [24, 24, 24, 24, 0, 48, 24, 24]
    assert hurt.slowest(hurt.link_bytes(np.full((32, 32), 1.0)))[0] == "node0.nic3.out -> leaf3"


def test_no_route_is_told():
    lone = load_cluster("rtx_4090_x8")
    with pytest.raises(InputError, match="accepted: a rank"):
        Topology.of(lone).path(0, 8)
    with pytest.raises(InputError, match="every port of node 1 is dead"):
        Topology.of(load_cluster("h200_x32"), Faults(nic_speed=dict.fromkeys(range(8, 16), 0.0)))
    with pytest.raises(InputError, match="messages of 0 bytes or more"):
        Topology.of(lone).link_bytes(np.full((8, 8), -1.0))
    with pytest.raises(InputError, match=r"needs a network"):
        load_cluster(Tree({"node": "rtx_4090_x1", "num_nodes": 2, "scale_out": {"kind": "none"}}))


@given(clusters(), generators)
@settings(max_examples=60)
def test_link_bytes_equal_the_sum_over_pairs(cluster, rng):
    topology = Topology.of(cluster)
    traffic = rng.integers(0, 1000, (topology.num_ranks, topology.num_ranks))
    assert np.array_equal(topology.link_bytes(traffic), pairwise(topology, traffic))


@given(clusters(), st.data())
@settings(max_examples=60)
def test_path_is_the_shortest_through_the_own_ports(cluster, data):
    topology = Topology.of(cluster)
    links = graph(cluster)
    ranks = st.integers(0, topology.num_ranks - 1)
    source, destination = data.draw(ranks), data.draw(ranks)
    path = topology.path(source, destination)
    if source == destination:
        assert path == ()
        return
    out, into = (f"node{cluster.node_of(r)}.nic{cluster.rail_of(r)}" for r in (source, destination))
    own = {f"rank{source}", f"rank{destination}", f"{out}.out", f"{into}.in"}
    walkable = links.subgraph(v for v in links if not v.startswith(("rank", "node")) or v in own)
    steps = nx.utils.pairwise(nx.shortest_path(walkable, f"rank{source}", f"rank{destination}"))
    found = [links.edges[step]["link"] for step in steps]
    assert [link for link in found if link >= 0] == list(path)


@given(clusters(), generators)
@settings(max_examples=30)
def test_what_leaves_arrives(cluster, rng):
    topology = Topology.of(cluster)
    traffic = rng.integers(0, 1000, (topology.num_ranks, topology.num_ranks))
    loads = topology.link_bytes(traffic)
    back = topology.link_bytes(traffic.T)
    for block, place in topology.blocks.items():
        if block.endswith("_out"):
            inward = topology.blocks[block.removesuffix("_out") + "_in"]
            assert loads[place].sum() == loads[inward].sum()
            assert np.array_equal(loads[place], back[inward])


@given(clusters(), generators)
@settings(max_examples=20)
def test_leading_axes_and_fewer_ranks(cluster, rng):
    topology = Topology.of(cluster)
    size = int(rng.integers(1, topology.num_ranks + 1))
    traffic = rng.integers(0, 1000, (2, 3, size, size))
    whole = np.zeros((topology.num_ranks, topology.num_ranks))
    whole[:size, :size] = traffic[1, 2]
    assert np.array_equal(topology.link_bytes(traffic)[1, 2], topology.link_bytes(whole))


def test_uniform_traffic_on_a_full_rate_fabric_is_bound_by_the_ports():
    topology = Topology.of(load_cluster("h200_x32"))
    name, seconds = topology.slowest(topology.link_bytes(np.full((32, 32), 1e6)))
    assert "nic" in name
    assert seconds == pytest.approx(24e6 / 50e9)


def test_oversubscription_makes_the_leaf_the_bottleneck():
    cluster = load_cluster("l40s_x32_oversubscribed")
    topology = Topology.of(cluster)
    name, seconds = topology.slowest(topology.link_bytes(np.full((32, 32), 1e6)))
    # sixteen devices a leaf send to sixteen others over a quarter of four ports of 50 GB/s
    assert "spine" in name
    assert seconds == pytest.approx(16 * 16 * 1e6 / (4 * 50e9 / 4))


def test_rail_traffic_needs_no_spine():
    topology = Topology.of(load_cluster("h200_x32"))
    rank = np.arange(32)
    same_rail = (rank[:, None] % 8 == rank % 8) * 1e6
    loads = topology.link_bytes(same_rail)
    assert loads[topology.blocks["leaf_out"]].sum() == 0
    assert loads[topology.blocks["nic_out"]].tolist() == [3e6] * 32


def test_rack_wide_domain_leaves_the_network_idle():
    topology = Topology.of(load_cluster("gb200_nvl72_x2"))
    rank = np.arange(144)
    inside = (rank[:, None] // 72 == rank // 72) * 1.0
    loads = topology.link_bytes(inside)
    assert loads[topology.blocks["nic_out"]].sum() == 0
    assert loads[topology.blocks["scale_up_out"]].tolist() == [71.0] * 144


def test_mesh_links_share_the_device_rate():
    topology = Topology.of(load_cluster("mi300x_x8"))
    assert topology.capacity_bytes_per_s[topology.blocks["mesh"]].tolist() == [64e9] * 56
    assert topology.path_latency_s(0, 7) == 2e-6


def test_path_latency_counts_switches():
    cluster = load_cluster("h200_x32")
    topology = Topology.of(cluster)
    nic, hop = cluster.node.nic.latency_s, cluster.scale_out.latency_s
    assert topology.path_latency_s(0, 8) == pytest.approx(nic + hop)
    assert topology.path_latency_s(0, 9) == pytest.approx(nic + 3 * hop)
    assert topology.path_latency_s(0, 1) == cluster.node.scale_up.latency_s


def test_graph_capacities_give_the_bisection():
    """Cutting two nodes from the other two of a full-rate fabric leaves sixteen ports."""
    links = graph(load_cluster("h200_x32"))
    for rank in range(32):
        links.add_edge(*(("left", f"rank{rank}") if rank < 16 else (f"rank{rank}", "right")))
    flow = nx.maximum_flow_value(links, "left", "right", capacity="capacity_bytes_per_s")
    assert flow == pytest.approx(16 * 50e9)


@pytest.mark.parametrize("shape", [(33, 33), (4, 5), (3, 4, 5)])
def test_traffic_of_a_wrong_shape_is_refused(shape):
    with pytest.raises(InputError, match="at most 32 ranks"):
        Topology.of(load_cluster("h200_x32")).link_bytes(np.zeros(shape))
