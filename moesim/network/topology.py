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

from moesim.errors import InputError
from moesim.hardware.schema import Cluster
from moesim.network.layout import PCIE_KINDS, Layout, mesh_ends, mesh_index, pair_ends, pair_index

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
    """

    link_names: tuple[str, ...]
    capacity_bytes_per_s: Floats
    latency_s: Floats
    edges: tuple[tuple[str, str, int], ...]
    blocks: dict[str, slice]
    layout: Layout

    @classmethod
    def of(cls, cluster: Cluster) -> Topology:
        """Topology of a cluster."""
        layout, builder = Layout.of(cluster), _Builder()
        _add_scale_up(builder, cluster, layout)
        if layout.rails:
            _add_scale_out(builder, cluster, layout)
        return cls(
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
        """Links from one rank to another, in order; empty for a rank to itself."""
        return tuple(self._steps(source, destination))

    def path_latency_s(self, source: int, destination: int) -> float:
        """Delay of a message of no bytes. [s]"""
        return float(sum(self.latency_s[link] for link in self.path(source, destination)))

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
        for block, values in (*self._local_loads(local), *self._remote_loads(remote)):
            loads[..., self.blocks[block]] += values
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

    def _link(self, block: str, index: int) -> int:
        return int(self.blocks[block].start + index)

    def _steps(self, source: int, destination: int) -> Iterator[int]:
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
                yield self._link("switch_in", layout.switch[destination])
            yield self._link("pcie_in", destination)

    def _remote_steps(self, source: int, destination: int) -> Iterator[int]:
        layout = self.layout
        over_pcie = layout.kind in PCIE_KINDS
        if over_pcie:
            yield self._link("pcie_out", source)
            if layout.is_nic_at_root:
                yield self._link("switch_out", layout.switch[source])
        out, into = int(layout.port[source]), int(layout.port[destination])
        yield self._link("nic_out", out)
        leaves = layout.leaf_of_port(out), layout.leaf_of_port(into)
        if leaves[0] != leaves[1]:
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
        whole = np.zeros((*traffic.shape[:-2], num_ranks, num_ranks))
        whole[..., :size, :size] = traffic
        whole[..., np.arange(num_ranks), np.arange(num_ranks)] = 0.0
        return whole

    def _local_loads(self, local: Floats) -> Iterator[tuple[str, Floats]]:
        layout = self.layout
        size = layout.devices_per_node
        if layout.kind == "nvswitch":
            yield "scale_up_out", local.sum(-1)
            yield "scale_up_in", local.sum(-2)
        elif layout.kind == "xgmi_mesh":
            source, destination = mesh_ends(layout.num_nodes, size)
            yield "mesh", local[..., source, destination]
        elif layout.kind in PCIE_KINDS:
            if layout.kind == "nvlink_pairs":
                left, right = pair_ends(layout.num_nodes, size)
                yield "pair", local[..., left, right]
                local[..., left, right] = 0.0
            yield "pcie_out", local.sum(-1)
            yield "pcie_in", local.sum(-2)
            if layout.num_switches:
                starts = np.flatnonzero(np.diff(layout.switch, prepend=-1))
                between = np.add.reduceat(np.add.reduceat(local, starts, axis=-1), starts, axis=-2)
                between[..., np.arange(len(starts)), np.arange(len(starts))] = 0.0
                yield "switch_out", between.sum(-1)
                yield "switch_in", between.sum(-2)

    def _remote_loads(self, remote: Floats) -> Iterator[tuple[str, Floats]]:
        layout = self.layout
        if not layout.rails:
            return
        if layout.kind in PCIE_KINDS:
            yield "pcie_out", remote.sum(-1)
            yield "pcie_in", remote.sum(-2)
            if layout.is_nic_at_root:
                starts = np.flatnonzero(np.diff(layout.switch, prepend=-1))
                yield "switch_out", np.add.reduceat(remote.sum(-1), starts, axis=-1)
                yield "switch_in", np.add.reduceat(remote.sum(-2), starts, axis=-1)
        if layout.rails < layout.devices_per_node:
            starts = np.flatnonzero(np.diff(layout.port, prepend=-1))
            remote = np.add.reduceat(np.add.reduceat(remote, starts, axis=-1), starts, axis=-2)
        yield "nic_out", remote.sum(-1)
        yield "nic_in", remote.sum(-2)
        if layout.num_leaves < 2:
            return
        ports = (layout.num_nodes, layout.rails)
        between = remote.reshape(*remote.shape[:-2], *ports, *ports)
        starts = np.flatnonzero(np.diff(layout.group, prepend=-1))
        between = np.add.reduceat(np.add.reduceat(between, starts, axis=-2), starts, axis=-4)
        if layout.leaves_per_group == 1:
            between = between.sum(axis=(-1, -3))
        between = between.reshape(*remote.shape[:-2], layout.num_leaves, layout.num_leaves)
        diagonal = np.arange(layout.num_leaves)
        between[..., diagonal, diagonal] = 0.0
        yield "leaf_out", between.sum(-1)
        yield "leaf_in", between.sum(-2)


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
            per_node = layout.num_switches // layout.num_nodes
            ends = [(f"switch{s}", f"root{s // per_node}") for s in range(layout.num_switches)]
            builder.add_both("switch", ends, pcie.bandwidth_bytes_per_s, 0.0)


def _add_scale_out(builder: _Builder, cluster: Cluster, layout: Layout) -> None:
    node, scale_out, rails = cluster.node, cluster.scale_out, layout.rails
    if node.nic is None:
        return
    rate = node.nic.bandwidth_bytes_per_s * node.num_nics / rails
    names = [f"node{p // rails}.nic{p % rails}" for p in range(layout.num_nodes * rails)]
    leaves = [f"leaf{layout.leaf_of_port(p)}" for p in range(len(names))]
    delay = node.nic.latency_s + scale_out.latency_s
    builder.add("nic_out", [(f"{n}.out", leaf) for n, leaf in zip(names, leaves, strict=True)], rate, delay)
    builder.add("nic_in", [(leaf, f"{n}.in") for n, leaf in zip(names, leaves, strict=True)], rate, 0.0)
    faces = set()
    for rank in range(layout.num_ranks):
        above = f"rank{rank}"
        if layout.kind in PCIE_KINDS:
            above = f"root{layout.node[rank]}" if layout.is_nic_at_root else _pcie_above(layout, rank)
        name = names[layout.port[rank]]
        faces |= {(above, f"{name}.out", -1), (f"{name}.in", above, -1)}
    builder.edges += sorted(faces)
    if layout.num_leaves > 1:
        members = np.bincount(layout.group).astype(np.float64)
        down = np.repeat(members * rate * (rails // layout.leaves_per_group), layout.leaves_per_group)
        ends = [(f"leaf{leaf}", "spine") for leaf in range(layout.num_leaves)]
        up: Floats = down / scale_out.oversubscription_ratio
        builder.add("leaf_out", ends, up, scale_out.latency_s)
        builder.add("leaf_in", [(head, tail) for tail, head in ends], up, scale_out.latency_s)


def _pcie_above(layout: Layout, rank: int) -> str:
    return f"switch{layout.switch[rank]}" if layout.num_switches else f"root{layout.node[rank]}"
