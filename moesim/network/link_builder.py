"""The links of a cluster, block by block: names, rates, latencies and the edges of its graph."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError, Problem, did_you_mean
from moesim.hardware.schema import Cluster
from moesim.network.cores.base import Core, Wiring, cores
from moesim.network.faults import Faults
from moesim.network.layout import PCIE_KINDS, Layout, mesh_ends, pair_ends
from moesim.network.link_loads import CorePaths

Floats = NDArray[np.float64]


@dataclass
class Builder:
    """Links in blocks of equal meaning, in the order they were added."""

    names: list[str] = field(default_factory=list)
    capacity: list[float] = field(default_factory=list)
    latency: list[float] = field(default_factory=list)
    edges: list[tuple[str, str, int]] = field(default_factory=list)
    blocks: dict[str, slice] = field(default_factory=dict)

    def add(self, block: str, ends: list[tuple[str, str]], capacity: float | Floats, latency: float) -> None:
        """Append one link for each pair of ends."""
        start = len(self.names)
        self.blocks[block] = slice(start, start + len(ends))
        self.names += [f"{tail} -> {head}" for tail, head in ends]
        self.edges += [(tail, head, start + i) for i, (tail, head) in enumerate(ends)]
        self.capacity += np.broadcast_to(capacity, len(ends)).tolist()
        self.latency += [latency] * len(ends)

    def add_both(self, block: str, ends: list[tuple[str, str]], capacity: float, latency: float) -> None:
        """Append ``block_out`` along the ends and ``block_in`` against them; the way out has the latency."""
        self.add(f"{block}_out", ends, capacity, latency)
        self.add(f"{block}_in", [(head, tail) for tail, head in ends], capacity, 0.0)


def add_scale_up(builder: Builder, cluster: Cluster, layout: Layout) -> None:
    """Append the links inside nodes and scale-up domains."""
    node, size, ranks = cluster.node, layout.devices_per_node, range(layout.num_ranks)
    link = node.scale_up
    if layout.kind == "nvswitch" and link is not None:
        ends = [(f"rank{r}", f"domain{layout.domain[r]}") for r in ranks]
        builder.add_both("scale_up", ends, link.bandwidth_bytes_per_s, link.latency_s)
    if layout.kind == "xgmi_mesh" and link is not None:
        pairs = zip(*mesh_ends(layout.num_nodes, size), strict=True)
        rate = link.bandwidth_bytes_per_s / max(size - 1, 1)
        builder.add("mesh", [(f"rank{a}", f"rank{b}") for a, b in pairs], rate, link.latency_s)
    if layout.kind == "nvlink_pairs" and link is not None:
        pairs = zip(*pair_ends(layout.num_nodes, size), strict=True)
        ends = [(f"rank{a}", f"rank{b}") for a, b in pairs]
        builder.add("pair", ends, link.bandwidth_bytes_per_s, link.latency_s)
    pcie = node.host.pcie
    if layout.kind in PCIE_KINDS and pcie is not None:
        ends = [(f"rank{r}", _pcie_above(layout, r)) for r in ranks]
        builder.add_both("pcie", ends, pcie.bandwidth_bytes_per_s, pcie.latency_s)
        if layout.num_switches:
            root_of = [
                _root(layout, int(np.flatnonzero(layout.switch == s)[0])) for s in range(layout.num_switches)
            ]
            ends = [(f"switch{s}", root) for s, root in enumerate(root_of)]
            builder.add_both("switch", ends, pcie.bandwidth_bytes_per_s, 0.0)
    link = node.host.socket_link
    if layout.kind in PCIE_KINDS and layout.num_sockets and link is not None:
        pairs = zip(*mesh_ends(layout.num_nodes, layout.num_sockets // layout.num_nodes), strict=True)
        ends = [(f"root{a}", f"root{b}") for a, b in pairs]
        builder.add("socket", ends, link.bandwidth_bytes_per_s, link.latency_s)
    if layout.is_through_host and layout.rails and pcie is not None:
        builder.add_both(
            "pcie",
            [(f"rank{r}", f"root{layout.node[r]}") for r in ranks],
            pcie.bandwidth_bytes_per_s,
            pcie.latency_s,
        )


def add_scale_out(builder: Builder, cluster: Cluster, layout: Layout) -> CorePaths | None:
    """Append ports and the network above them; paths of its core where that has any of its own."""
    node, scale_out, rails = cluster.node, cluster.scale_out, layout.rails
    if node.nic is None:
        return None
    rate = node.nic.bandwidth_bytes_per_s * node.num_nics / rails
    names = [f"node{p // rails}.nic{p % rails}" for p in range(layout.num_nodes * rails)]
    leaves = [f"leaf{layout.leaf_of_port(p)}" for p in range(len(names))]
    delay = node.nic.latency_s + scale_out.latency_s
    builder.add("nic_out", [(f"{n}.out", leaf) for n, leaf in zip(names, leaves, strict=True)], rate, delay)
    builder.add("nic_in", [(leaf, f"{n}.in") for n, leaf in zip(names, leaves, strict=True)], rate, 0.0)
    faces = set()
    for rank in range(layout.num_ranks):
        above = f"rank{rank}"
        if layout.kind in PCIE_KINDS or layout.is_through_host:
            at_root = layout.is_nic_at_root or layout.is_through_host
            above = _root(layout, rank) if at_root else _pcie_above(layout, rank)
        name = names[layout.port[rank]]
        faces |= {(above, f"{name}.out", -1), (f"{name}.in", above, -1)}
    builder.edges += sorted(faces)
    if layout.num_leaves < 2:
        return None
    members = np.bincount(layout.group).astype(np.float64)
    down = np.repeat(members * rate * (rails // layout.leaves_per_group), layout.leaves_per_group)
    kind = "spines" if scale_out.num_spines is not None else scale_out.kind
    if kind in cores.names():
        core: Core = cores.classes[kind](Wiring(scale_out, down))
        links = core.links()
        rates = np.array([rate for _, _, rate in links])
        builder.add("core", [(tail, head) for tail, head, _ in links], rates, scale_out.latency_s)
        is_hashed = scale_out.multipath == "hash"
        return CorePaths.of(core, layout.leaf_of_ports(), layout.num_leaves, is_hashed=is_hashed)
    ends = [(f"leaf{leaf}", "spine") for leaf in range(layout.num_leaves)]
    up: Floats = down / scale_out.oversubscription_ratio
    builder.add("leaf_out", ends, up, scale_out.latency_s)
    builder.add("leaf_in", [(head, tail) for tail, head in ends], up, scale_out.latency_s)
    return None


def slow_down(builder: Builder, layout: Layout, faults: Faults) -> None:
    """Multiply the capacities of slow parts; a dead port keeps its rate, for nobody uses it."""
    named = {
        ("nic_out", "nic_in"): {n: speed for n, speed in faults.nic_speed.items() if speed > 0},
        ("scale_up_out", "scale_up_in"): faults.scale_up_speed,
        ("leaf_out", "leaf_in"): faults.uplink_speed,
    }
    for blocks, speeds in named.items():
        for block in blocks if speeds else ():
            if block not in builder.blocks:
                message = f"the cluster has no links {block}; accepted: faults of links that it has"
                raise InputError([Problem("faults", message)])
            for number, speed in speeds.items():
                place = builder.blocks[block]
                if not 0 <= number < place.stop - place.start:
                    message = (
                        f"{block} {number} does not exist; accepted: 0 to {place.stop - place.start - 1}"
                    )
                    raise InputError([Problem("faults", message)])
                builder.capacity[place.start + number] *= speed
    places = {name: place for place, name in enumerate(builder.names)}
    for name, speed in faults.link_speed.items():
        if name not in places:
            message = (
                f"no link {name!r}{did_you_mean(name, places)}; moesim profile show lists kinds of links"
            )
            raise InputError([Problem("faults.link_speed", message)])
        builder.capacity[places[name]] *= speed


def _root(layout: Layout, rank: int) -> str:
    """Host bridge of a rank: of its socket, where they are told apart."""
    return f"root{layout.socket[rank] if layout.num_sockets else layout.node[rank]}"


def _pcie_above(layout: Layout, rank: int) -> str:
    return f"switch{layout.switch[rank]}" if layout.num_switches else _root(layout, rank)
