"""Where each rank of a cluster sits: domain, node, PCIe switch, network port, leaf switch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.hardware.schema import Cluster

Ints = NDArray[np.int64]

PCIE_KINDS = ("pcie", "nvlink_pairs")
"""Scale-up kinds whose devices reach peers and the network through the host's PCIe tree."""


@dataclass(frozen=True)
class Layout:
    """Where each rank sits; all arrays ``(rank,)`` unless said otherwise.

    Attributes
    ----------
    kind : str
        Scale-up kind of the nodes.
    devices_per_node, num_nodes, rails : int
        Shape of the cluster; ``rails`` network ports a node (0 without a network).
    domain, node : ndarray of int
        Scale-up domain and node.
    switch : ndarray of int
        PCIe switch, counted over the cluster.
    num_switches : int
        PCIe switches of the cluster; 0 where devices hang on the root directly.
    is_nic_at_root : bool
        A port serves devices of several PCIe switches, so its traffic crosses their uplinks.
    socket : ndarray of int
        Socket that the rank's PCIe switch hangs on, counted over the cluster.
    num_sockets : int
        Sockets told apart; 0 where a node has one.
    is_through_host : bool
        Bytes to and from the network cross the host's links, though the devices have a fabric of their own.
    port : ndarray of int
        Network port, counted over the cluster; the one in use where the rank's own is dead.
    group : ndarray of int, ``(node,)``
        Nodes under the same leaf switches.
    leaves_per_group : int
        ``rails`` in a rail-optimised network, else 1.
    """

    kind: str
    devices_per_node: int
    num_nodes: int
    rails: int
    domain: Ints
    node: Ints
    switch: Ints
    num_switches: int
    is_nic_at_root: bool
    socket: Ints
    num_sockets: int
    is_through_host: bool
    port: Ints
    group: Ints
    leaves_per_group: int

    @property
    def num_ranks(self) -> int:
        """Ranks of the cluster."""
        return len(self.domain)

    @property
    def num_leaves(self) -> int:
        """Leaf switches of the cluster."""
        return int(self.group[-1] + 1) * self.leaves_per_group if self.rails else 0

    def leaf_of_port(self, port: int) -> int:
        """Leaf switch that a network port is plugged into."""
        node, rail = divmod(port, self.rails)
        return int(self.group[node]) * self.leaves_per_group + rail % self.leaves_per_group

    def leaf_of_ports(self) -> Ints:
        """Leaf switch of every port, ``(port,)``."""
        node, rail = np.divmod(np.arange(self.num_nodes * self.rails), max(self.rails, 1))
        return np.asarray(self.group[node] * self.leaves_per_group + rail % self.leaves_per_group)

    def partner(self, rank: int) -> int:
        """Other end of the rank's NVLink bridge, or -1."""
        local = rank % self.devices_per_node
        other = local ^ 1
        return rank - local + other if self.kind == "nvlink_pairs" and other < self.devices_per_node else -1

    @classmethod
    def of(cls, cluster: Cluster, port: Ints | None = None) -> Layout:
        """Layout of a cluster; ``port`` where ranks do not use their own."""
        node_spec, scale_out = cluster.node, cluster.scale_out
        ranks = np.arange(cluster.num_devices)
        node = ranks // node_spec.num_devices
        local = ranks % node_spec.num_devices
        size = node_spec.host.devices_per_pcie_switch
        per_node = -(-node_spec.num_devices // size)
        sockets = node_spec.host.numa_domains
        has_switches = node_spec.scale_up_kind in PCIE_KINDS and size > 1 and per_node > 1
        rails = node_spec.num_rails if scale_out.kind != "none" else 0
        rail = np.asarray(cluster.rail_of(ranks), dtype=np.int64)
        switch = node * per_node + local // size
        spans = {r: set(switch[(node == 0) & (rail == r)].tolist()) for r in range(rails)}
        return cls(
            kind=node_spec.scale_up_kind,
            devices_per_node=node_spec.num_devices,
            num_nodes=cluster.num_nodes,
            rails=rails,
            domain=np.asarray(cluster.domain_of(ranks), dtype=np.int64),
            node=node,
            switch=switch,
            num_switches=per_node * cluster.num_nodes if has_switches else 0,
            is_nic_at_root=has_switches and any(len(s) > 1 for s in spans.values()),
            socket=node * sockets + local // size * sockets // per_node,
            num_sockets=cluster.num_nodes * sockets if sockets > 1 else 0,
            is_through_host=not node_spec.gpudirect and node_spec.scale_up_kind not in PCIE_KINDS,
            port=node * max(rails, 1) + rail if port is None else port,
            group=np.arange(cluster.num_nodes) // _nodes_per_leaf(cluster),
            leaves_per_group=rails if scale_out.kind == "rail_optimised" else 1,
        )


def _nodes_per_leaf(cluster: Cluster) -> int:
    """A torus has a router for each node."""
    if cluster.scale_out.kind == "torus":
        return 1
    return cluster.scale_out.nodes_per_leaf or cluster.num_nodes


def mesh_ends(num_nodes: int, size: int) -> tuple[Ints, Ints]:
    """Ordered pairs of different ranks of a node, node by node."""
    source, destination = np.nonzero(~np.eye(size, dtype=bool))
    base = np.repeat(np.arange(num_nodes) * size, len(source))
    return base + np.tile(source, num_nodes), base + np.tile(destination, num_nodes)


def mesh_index(size: int, source: int, destination: int) -> int:
    """Position of a pair in :func:`mesh_ends`."""
    node, a = divmod(source, size)
    b = destination % size
    return node * size * (size - 1) + a * (size - 1) + b - (b > a)


def pair_ends(num_nodes: int, size: int) -> tuple[Ints, Ints]:
    """Ordered bridged pairs 0-1, 1-0, 2-3, ... of every node; an odd last device has none."""
    local = np.arange(size - size % 2)
    ranks = (np.arange(num_nodes)[:, None] * size + local).ravel()
    partner = (np.arange(num_nodes)[:, None] * size + (local ^ 1)).ravel()
    return ranks, partner


def pair_index(size: int, source: int) -> int:
    """Position of a source in :func:`pair_ends`."""
    node, local = divmod(source, size)
    return node * (size - size % 2) + local
