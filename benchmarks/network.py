"""Speed of one uneven all-to-all: port bound, link loads, max-min over node classes, and the fluid run."""

import numpy as np
from measure import Row, cpu_s, show

from moesim.engine import Meet, Part, Program, durations_ps, events
from moesim.engine.sharing import Paths, finish_times_s, max_min_rates
from moesim.evidence import Estimate
from moesim.files import Tree
from moesim.hardware import load_cluster
from moesim.network.demand import demand_of_traffic
from moesim.network.link_loads import one_hot
from moesim.network.topology import Topology


def cluster(nodes: int, ratio: float = 1.0):
    """Nodes of eight H100 under leaves of sixteen."""
    scale_out = {
        "kind": "fat_tree",
        "nodes_per_leaf": 16,
        "oversubscription_ratio": ratio,
        "latency_s": 5e-7,
    }
    return load_cluster(Tree({"node": "h100_x8", "num_nodes": nodes, "scale_out": scale_out}))


def uneven(ranks: int) -> np.ndarray:
    """Gamma-skewed bytes from rank to rank."""
    traffic = np.random.default_rng(0).gamma(2.0, 5e4, (ranks, ranks))
    np.fill_diagonal(traffic, 0.0)
    return traffic


def bound(traffic: np.ndarray) -> float:
    """Largest row or column sum: what the busiest port carries."""
    return float(max(traffic.sum(0).max(), traffic.sum(1).max()))


def node_classes(topology: Topology, traffic: np.ndarray) -> tuple[Paths, np.ndarray, np.ndarray]:
    """Flows between nodes over joint ports and leaf links, their bytes, and the links' rates."""
    layout = topology.layout
    members = one_hot(layout.node, layout.num_nodes)
    between = members.T @ traffic @ members
    np.fill_diagonal(between, 0.0)
    source, destination = np.nonzero(between)
    nodes, leaves = layout.num_nodes, layout.num_leaves
    leaf_of = layout.group
    flow = np.arange(len(source))
    crosses = np.flatnonzero(leaf_of[source] != leaf_of[destination])
    paths = Paths(
        np.concatenate([flow, flow, crosses, crosses]),
        np.concatenate(
            [
                source,
                nodes + destination,
                2 * nodes + leaf_of[source[crosses]],
                2 * nodes + leaves + leaf_of[destination[crosses]],
            ]
        ),
        np.ones(2 * len(flow) + 2 * len(crosses)),
        len(flow),
    )
    ports = layout.rails * topology.capacity_bytes_per_s[topology.blocks["nic_out"]][0]
    uplink = topology.capacity_bytes_per_s[topology.blocks["leaf_out"]]
    rates = np.concatenate([np.full(2 * nodes, ports), uplink, uplink])
    return paths, between[source, destination], rates


def fluid_over_bound(ranks: int) -> float:
    """Makespan of the fluid run over the port bound on a full-rate fabric."""
    traffic = uneven(ranks)
    source, destination = np.nonzero(traffic)
    paths = Paths.of([(s, ranks + d) for s, d in zip(source.tolist(), destination.tolist(), strict=True)])
    capacity = np.full(2 * ranks, 50e9)
    finish = finish_times_s(paths, capacity, traffic[source, destination], together=0.02)
    return float(finish.max()) / (bound(traffic) / 50e9)


def contended():
    """Four uneven dispatches beside a gradient exchange over the same ports, and their program."""
    topology, ranks = Topology.of(cluster(128, 2.0)), 1024
    group = np.zeros(ranks, dtype=np.int64)

    def meet(name, traffic, seconds):
        part = Part(name, "all_to_all", Estimate(seconds, "all_to_all", "assumed", 0.0))
        return Meet(name, group, (part,), demand=demand_of_traffic(topology, traffic, seconds))

    dispatch = meet("dispatch", uneven(ranks), 2e-3)
    gradients = meet("gradients", np.full((ranks, ranks), 1e5), 4e-3)
    program = Program(ranks, ("dispatch", "gradients"), (*[dispatch] * 4, gradients))
    durations = durations_ps(program)
    return lambda: events.simulate(program, durations), program


def main() -> list[Row]:
    rows = []
    for ranks, target in ((64, 10_000), (256, 2_000), (1024, 200)):
        traffic = uneven(ranks)
        seconds = cpu_s(lambda t=traffic: bound(t), loops=20)
        rows.append(Row(f"port bound of one all-to-all, {ranks} ranks", 1 / seconds, "solves/s", target))
    traffic, topology = uneven(1024), Topology.of(cluster(128, 2.0))
    rows.append(
        Row("bytes on every link, 1,024 ranks", 1 / cpu_s(lambda: topology.link_bytes(traffic)), "solves/s")
    )
    paths, amount, rates = node_classes(topology, traffic)
    solve = cpu_s(lambda: max_min_rates(paths, rates, weight=amount / amount.mean()))
    name = f"max-min, {paths.num_flows:,} node classes of 1,024 ranks, 2:1 spine"
    rows.append(Row(name, 1 / solve, "solves/s", 20))
    run, program = contended()
    steps = len(program.instructions)
    rows.append(
        Row(f"events, {steps} exchanges on crowded ports, 1,024 ranks", steps / cpu_s(run), "exchanges/s")
    )
    show("One uneven all-to-all", rows)
    ratio = fluid_over_bound(32)
    print(f"  fluid makespan over port bound, 32 ranks, full rate: {ratio:.4f} (accepted: within 1 %)")
    return rows


if __name__ == "__main__":
    main()
