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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moesim.engine.sharing import Paths
from moesim.errors import InputError, Problem
from moesim.hardware.schema import Cluster
from moesim.network.faults import Faults
from moesim.network.layout import PCIE_KINDS, Layout, mesh_index, pair_index
from moesim.network.link_builder import Builder, add_scale_out, add_scale_up, slow_down
from moesim.network.link_loads import CorePaths, local_loads, remote_loads

if TYPE_CHECKING:
    import networkx

Floats = NDArray[np.float64]


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
        layout, builder = Layout.of(cluster, faults.live_ports(cluster)), Builder()
        add_scale_up(builder, cluster, layout)
        core = add_scale_out(builder, cluster, layout) if layout.rails else None
        slow_down(builder, layout, faults)
        slowest = min([1.0, *faults.uplink_speed.values(), *faults.link_speed.values()])
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
