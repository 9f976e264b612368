"""Every link of a cluster, the path between two ranks, and the bytes on each link for given traffic.

Paths follow from the structure of the cluster, not from a search: inside a scale-up domain over its
fabric, otherwise out of the sender's network port, through its leaf switch (and the spine, if the
receiver hangs on another leaf) into the receiver's port. A device uses its own port only; forwarding
over a neighbour's port is a matter of traffic, not of paths. Links that carry equal shares by design
(the uplinks of a leaf) are one link of their joint capacity. The networkx graph is made on demand,
for whoever wants to ask other questions of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moesim.engine.sharing import Paths
from moesim.errors import InputError, Problem
from moesim.hardware.schema import Cluster
from moesim.network.cores.base import Core, Wiring, cores
from moesim.network.faults import Faults
from moesim.network.layout import PCIE_KINDS, Layout, mesh_ends, mesh_index, pair_ends, pair_index
from moesim.network.link_loads import CorePaths, local_loads, remote_loads

if TYPE_CHECKING:
    import networkx

Floats = NDArray[np.float64]


@dataclass
class _Builder:
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


@dataclass(frozen=True)
class Topology:
    """Links of a cluster. Ranks are devices in node order; traffic is ``[source, destination]``.

    Attributes
    ----------
    link_names : tuple of str
        ``'tail -> head'`` of each link.
    capacity_bytes_per_s, latency_s : ndarray, ``(link,)``
        Rate of one direction, and the delay that the link adds to a path. [bytes/s], [s]
    edges : tuple
        ``(tail, head, link)`` of the graph; link -1 for ends that are one piece of hardware.
    uplink_ratio : float
        Least up-link over down-link rate of a leaf, faults included; 1 where there is none. [-]
    """

    link_names: tuple[str, ...]
    capacity_bytes_per_s: Floats
    latency_s: Floats
    edges: tuple[tuple[str, str, int], ...]
    blocks: dict[str, slice]
    layout: Layout
    core: CorePaths | None = None
    uplink_ratio: float = 1.0

    @classmethod
    def of(cls, cluster: Cluster, faults: Faults | None = None) -> Topology:
        """Topology of a cluster, with what is slow or dead.

        Raises
        ------
        InputError
            A fault of something that the cluster does not have, or a node without a live port.
        """
        faults = faults or Faults()
        faults.check(cluster)
        layout, builder = Layout.of(cluster, faults.live_ports(cluster)), _Builder()
        _add_scale_up(builder, cluster, layout)
        core = _add_scale_out(builder, cluster, layout) if layout.rails else None
        _slow_down(builder, layout, faults)
        slowest = min([1.0, *faults.uplink_speed.values()])
        return cls(
            core=core,
            uplink_ratio=slowest / cluster.scale_out.oversubscription_ratio,
            link_names=tuple(builder.names),
            capacity_bytes_per_s=np.array(builder.capacity),
            latency_s=np.array(builder.latency),
            edges=tuple(builder.edges),
            blocks=builder.blocks,
            layout=layout,
        )

    @property
    def num_ranks(self) -> int:
        """Ranks of the cluster."""
        return self.layout.num_ranks

    def path(self, source: int, destination: int) -> tuple[int, ...]:
        """Links from one rank to another, in order; empty for a rank to itself.

        Where a pair is spread over several equal paths, the links of all of them.

        Raises
        ------
        InputError
            No such rank, or no route between the two.
        """
        return tuple(link for link, _ in self.shares(source, destination))

    def shares(self, source: int, destination: int) -> list[tuple[int, float]]:
        """Links of :meth:`path` with the share of the pair's bytes on each."""
        for name, rank in (("source", source), ("destination", destination)):
            if not 0 <= rank < self.num_ranks:
                raise InputError.at(name, rank, f"a rank, 0 to {self.num_ranks - 1}")
        return list(self._steps(source, destination))

    def flows(self, traffic: NDArray[Any]) -> tuple[Paths, Floats]:
        """Paths and bytes of every pair that sends anything, for a ``(source, destination)`` matrix."""
        whole = self._whole(traffic)
        pairs = np.argwhere(whole > 0)
        uses = [self.shares(int(source), int(destination)) for source, destination in pairs]
        counts = [len(own) for own in uses]
        flat = [use for own in uses for use in own]
        paths = Paths(
            np.repeat(np.arange(len(uses)), counts),
            np.array([link for link, _ in flat], dtype=np.int64),
            np.array([share for _, share in flat]),
            len(uses),
        )
        return paths, whole[pairs[:, 0], pairs[:, 1]]

    def path_latency_s(self, source: int, destination: int) -> float:
        """Delay of a message of no bytes. [s]"""
        return float(sum(self.latency_s[link] * share for link, share in self.shares(source, destination)))

    def link_bytes(self, traffic: NDArray[Any]) -> Floats:
        """Bytes that cross each link.

        Parameters
        ----------
        traffic : ndarray, ``(..., source, destination)``
            Bytes from rank to rank, for the first ranks of the cluster or all; the diagonal is free.

        Returns
        -------
        ndarray of float, ``(..., link)``
            The sum over all pairs whose path holds the link, exact for whole numbers of bytes.

        Raises
        ------
        InputError
            Traffic that is not square, or of more ranks than the cluster has.
        """
        layout = self.layout
        traffic = self._whole(traffic)
        is_local = layout.domain[:, None] == layout.domain
        local, remote = traffic * is_local, traffic * ~is_local
        loads = np.zeros((*traffic.shape[:-2], len(self.link_names)))
        for block, values in (
            *local_loads(layout, local),
            *remote_loads(layout, remote, self.core),
        ):
            loads[..., self.blocks[block]] += values
        return loads

    @property
    def shared(self) -> NDArray[np.int64]:
        """Links that can hold traffic back though every port has room, ``(shared link,)``."""
        names = ["mesh", "pair", "switch_out", "switch_in", "socket", "core"]
        uplinks = [name for name in ("leaf_out", "leaf_in") if name in self.blocks]
        if uplinks and self.uplink_ratio < 1:
            names += uplinks
        places = [np.arange(p.start, p.stop) for n in names if (p := self.blocks.get(n)) is not None]
        return np.concatenate([np.zeros(0, dtype=np.int64), *places])

    def shared_loads(self, traffic: Floats, ranks: NDArray[np.int64]) -> Floats:
        """Load of each link of :attr:`shared`, ``(layer, member, member) -> (layer, shared link)``."""
        shared, whole = self.shared, np.zeros((self.num_ranks, self.num_ranks))
        loads = np.zeros((len(traffic), len(shared)))
        place = np.ix_(ranks, ranks)
        for layer, own in enumerate(traffic):
            whole[place] = own
            loads[layer] = self.link_bytes(whole)[shared]
        return loads

    def slowest(self, link_bytes: Floats) -> tuple[str, float]:
        """Name of the link that needs longest for its bytes, ``(link,)``, and its seconds."""
        if not self.link_names:
            return "", 0.0
        seconds = link_bytes / self.capacity_bytes_per_s
        worst = int(np.argmax(seconds))
        return self.link_names[worst], float(seconds[worst])

    def graph(self) -> networkx.DiGraph:
        """Links as edges with ``capacity_bytes_per_s``, ``latency_s`` and ``link``.

        Edges between two faces of one device have no capacity, which networkx reads as unlimited.
        """
        import networkx  # noqa: PLC0415 - slow to import, rarely needed

        result = networkx.DiGraph()
        for tail, head, link in self.edges:
            if link < 0:
                result.add_edge(tail, head, link=link, latency_s=0.0)
                continue
            rate, delay = float(self.capacity_bytes_per_s[link]), float(self.latency_s[link])
            result.add_edge(tail, head, link=link, capacity_bytes_per_s=rate, latency_s=delay)
        return result

    def _link(self, block: str, index: int) -> tuple[int, float]:
        return int(self.blocks[block].start + index), 1.0

    def _steps(self, source: int, destination: int) -> Iterator[tuple[int, float]]:
        layout = self.layout
        if source == destination:
            return
        if layout.domain[source] != layout.domain[destination]:
            yield from self._remote_steps(source, destination)
        elif layout.kind == "nvswitch":
            yield self._link("scale_up_out", source)
            yield self._link("scale_up_in", destination)
        elif layout.kind == "xgmi_mesh":
            yield self._link("mesh", mesh_index(layout.devices_per_node, source, destination))
        elif destination == layout.partner(source):
            yield self._link("pair", pair_index(layout.devices_per_node, source))
        else:
            crosses = layout.num_switches and layout.switch[source] != layout.switch[destination]
            yield self._link("pcie_out", source)
            if crosses:
                yield self._link("switch_out", layout.switch[source])
            sockets = int(layout.socket[source]), int(layout.socket[destination])
            if layout.num_sockets and sockets[0] != sockets[1]:
                yield self._link("socket", mesh_index(layout.num_sockets // layout.num_nodes, *sockets))
            if crosses:
                yield self._link("switch_in", layout.switch[destination])
            yield self._link("pcie_in", destination)

    def _remote_steps(self, source: int, destination: int) -> Iterator[tuple[int, float]]:
        layout = self.layout
        if not layout.rails:
            message = f"no route to rank {destination}: the cluster has no network between its domains"
            raise InputError([Problem(f"rank {source}", message)])
        over_pcie = layout.kind in PCIE_KINDS or layout.is_through_host
        if over_pcie:
            yield self._link("pcie_out", source)
            if layout.is_nic_at_root:
                yield self._link("switch_out", layout.switch[source])
        out, into = int(layout.port[source]), int(layout.port[destination])
        yield self._link("nic_out", out)
        leaves = layout.leaf_of_port(out), layout.leaf_of_port(into)
        if leaves[0] != leaves[1] and self.core is not None:
            ends = (out, into) if self.core.is_by_port else leaves
            start = self.blocks["core"].start
            yield from ((start + link, share) for link, share in self.core.used_by(*ends))
        elif leaves[0] != leaves[1]:
            yield self._link("leaf_out", leaves[0])
            yield self._link("leaf_in", leaves[1])
        yield self._link("nic_in", into)
        if over_pcie:
            if layout.is_nic_at_root:
                yield self._link("switch_in", layout.switch[destination])
            yield self._link("pcie_in", destination)

    def _whole(self, traffic: NDArray[Any]) -> Floats:
        size, num_ranks = traffic.shape[-1], self.num_ranks
        if traffic.shape[-2:] != (size, size) or size > num_ranks:
            raise InputError.at("traffic", traffic.shape, f"(..., ranks, ranks), at most {num_ranks} ranks")
        if not (np.asarray(traffic) >= 0).all():
            raise InputError.at("traffic", float(np.min(traffic)), "messages of 0 bytes or more")
        whole = np.zeros((*traffic.shape[:-2], num_ranks, num_ranks))
        whole[..., :size, :size] = traffic
        whole[..., np.arange(num_ranks), np.arange(num_ranks)] = 0.0
        return whole


def graph(cluster: Cluster) -> networkx.DiGraph:
    """Graph of a cluster's links; see :meth:`Topology.graph`."""
    return Topology.of(cluster).graph()


def _add_scale_up(builder: _Builder, cluster: Cluster, layout: Layout) -> None:
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


def _add_scale_out(builder: _Builder, cluster: Cluster, layout: Layout) -> CorePaths | None:
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


def _slow_down(builder: _Builder, layout: Layout, faults: Faults) -> None:
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


def _root(layout: Layout, rank: int) -> str:
    """Host bridge of a rank: of its socket, where they are told apart."""
    return f"root{layout.socket[rank] if layout.num_sockets else layout.node[rank]}"


def _pcie_above(layout: Layout, rank: int) -> str:
    return f"switch{layout.switch[rank]}" if layout.num_switches else _root(layout, rank)
