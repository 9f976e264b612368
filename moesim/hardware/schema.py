"""What nodes and clusters are: frozen, validated descriptions; devices are in :mod:`moesim.hardware.device`.

Nothing here knows a model, a plan or a duration. Numbers are SI base units; bandwidths are per
direction. Where each number comes from sits beside it under ``sources``.
"""

from __future__ import annotations

from math import prod
from typing import Annotated, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from moesim.hardware.device import (
    DTYPES,
    Count,
    Described,
    Device,
    DeviceKind,
    Link,
    MemoryTier,
    NonNegative,
    Sourced,
    source_in,
)

__all__ = [
    "DTYPES",
    "Cluster",
    "Device",
    "DeviceKind",
    "Host",
    "Link",
    "MemoryTier",
    "Node",
    "ScaleOut",
    "Sourced",
    "source_in",
]

Indices: TypeAlias = NDArray[np.integer]

ScaleUpKind: TypeAlias = Literal["nvswitch", "nvlink_pairs", "xgmi_mesh", "pcie", "none"]
ScaleOutKind: TypeAlias = Literal["rail_optimised", "fat_tree", "fat_tree_3", "dragonfly", "torus", "none"]


class Host(Described):
    """The processors and memories around the devices of one node.

    Attributes
    ----------
    cpu : Device
        One socket.
    num_sockets : int
        Sockets of the node. [-]
    dram : MemoryTier
        All memory channels of the node together.
    pcie : Link or None
        Between the host and one device; None where the devices are the sockets themselves.
    devices_per_pcie_switch : int
        Devices that share one uplink to the host. [-]
    numa_domains : int
        Sockets that the PCIe switches (or devices) are spread over, evenly. [-]
    socket_link : Link, optional
        Between two sockets, one direction; what crosses them uses it. Needed with ``numa_domains`` above 1.
    ssd, cxl : MemoryTier, optional
        Slower tiers of the node.
    """

    cpu: Device
    num_sockets: Count
    dram: MemoryTier
    pcie: Link | None
    devices_per_pcie_switch: Count = 1
    numa_domains: Count = 1
    socket_link: Link | None = None
    ssd: MemoryTier | None = None
    cxl: MemoryTier | None = None

    @model_validator(mode="after")
    def _sockets(self) -> Host:
        if (self.numa_domains > 1) != (self.socket_link is not None):
            need = "no socket_link with 1, one with more"
            message = f"numa_domains={self.numa_domains} and socket_link disagree; accepted: {need}"
            raise ValueError(message)
        return self


class Node(Sourced):
    """Equal devices in one box, how they reach one another, the host and the network.

    Attributes
    ----------
    device : Device
        What the ranks are.
    num_devices : int
        Devices of the node. [-]
    pim : Device, optional
        Near-memory unit inside the memory of every device.
    scale_up : Link or None
        Attachment of one device to the fabric inside the scale-up domain.
    scale_up_kind : str
        ``nvswitch`` (every pair at full rate), ``nvlink_pairs`` (0-1, 2-3, ...; others over PCIe),
        ``xgmi_mesh`` (rate split over the peers), ``pcie`` or ``none``.
    peer : Link, optional
        What two devices without a fabric reach of one another, where that is less than their links to the
        host: no direct access between them, so that bytes turn round in the root complex or host memory.
    host : Host
        Processors and memories.
    nic : Link or None
        One network port.
    num_nics : int
        Ports of the node; a multiple or a divisor of ``num_devices``, or 0. [-]
    gpudirect : bool
        Ports read device memory; else bytes to and from the network also cross the host's links.
    """

    device: Device
    num_devices: Count
    pim: Device | None = None
    scale_up: Link | None
    scale_up_kind: ScaleUpKind
    peer: Link | None = None
    host: Host
    nic: Link | None
    num_nics: Annotated[int, Field(ge=0, strict=True)]
    gpudirect: bool = True

    @model_validator(mode="after")
    def _consistent(self) -> Node:
        fabric = self.scale_up_kind in {"nvswitch", "nvlink_pairs", "xgmi_mesh"}
        if fabric != (self.scale_up is not None):
            need = "a link under scale_up" if fabric else "scale_up: null"
            message = f"scale_up_kind {self.scale_up_kind} and scale_up disagree; accepted: {need}"
            raise ValueError(message)
        if self.scale_up_kind == "none" and self.num_devices > 1:
            message = f"num_devices={self.num_devices} cannot reach one another with scale_up_kind none"
            raise ValueError(message)
        if self.peer is not None and self.scale_up_kind != "pcie":
            message = f"peer is for devices that meet over PCIe; scale_up_kind is {self.scale_up_kind}"
            raise ValueError(message)
        if self.host.pcie is None and self.scale_up_kind in {"pcie", "nvlink_pairs"}:
            message = f"scale_up_kind {self.scale_up_kind} needs host.pcie"
            raise ValueError(message)
        if (self.nic is None) != (self.num_nics == 0):
            accepted = "both given, or num_nics: 0 with nic: null"
            message = f"num_nics={self.num_nics} and nic disagree; accepted: {accepted}"
            raise ValueError(message)
        if self.num_nics and self.num_devices % self.num_nics and self.num_nics % self.num_devices:
            accepted = f"a divisor or a multiple of num_devices={self.num_devices}"
            message = f"got num_nics={self.num_nics}; accepted: {accepted}"
            raise ValueError(message)
        if self.pim is not None and self.pim.kind != "pim":
            message = f"pim names {self.pim.name}, a {self.pim.kind}; accepted: a device of kind pim"
            raise ValueError(message)
        if self.pim is not None and self.pim.host_memory_of not in {None, self.device.name}:
            owner = self.pim.host_memory_of
            message = f"pim {self.pim.name} works in the memory of {owner}, not of {self.device.name}"
            raise ValueError(message)
        return self

    @property
    def num_rails(self) -> int:
        """Separate network attachments that devices are spread over: 0 without NICs."""
        return min(self.num_nics, self.num_devices)


class ScaleOut(Described):
    """The network between nodes.

    Attributes
    ----------
    kind : str
        ``rail_optimised`` (NIC i of every node on leaf i), ``fat_tree`` (all NICs of a node on the
        leaf of its group), ``fat_tree_3`` (pods of such leaves under a core), ``dragonfly`` (leaves of a
        group linked to one another, groups by one link each), ``torus`` (nodes linked to their neighbours)
        or ``none``.
    oversubscription_ratio : float
        Down-link over up-link capacity of a leaf; of a torus, NIC over neighbour link. [-]
    upper_oversubscription_ratio : float
        The same of a pod's links to the core, or a group's links to other groups. [-]
    leaves_per_pod : int, optional
        Leaves of a pod or group (``fat_tree_3``, ``dragonfly``). [-]
    num_spines : int, optional
        Spine switches of a ``fat_tree``, drawn one by one; None: one of their joint capacity. [-]
    multipath : str
        Equal paths share each flow (``even``) or each pair of ports takes one of them (``hash``).
    dimensions : tuple of int, optional
        Nodes along each dimension of a ``torus``.
    latency_s : float
        Added by each switch on the way. [s]
    nodes_per_leaf : int, optional
        Nodes whose NICs share a leaf; None: all of them (rail-optimised only).
    """

    kind: ScaleOutKind
    oversubscription_ratio: Annotated[float, Field(ge=1, allow_inf_nan=False, strict=True)] = 1.0
    latency_s: NonNegative = 0.0
    nodes_per_leaf: Count | None = None
    upper_oversubscription_ratio: Annotated[float, Field(ge=1, allow_inf_nan=False, strict=True)] = 1.0
    leaves_per_pod: Count | None = None
    num_spines: Count | None = None
    multipath: Literal["even", "hash"] = "even"
    dimensions: Annotated[tuple[Count, ...], Field(min_length=1, max_length=3)] | None = None

    @model_validator(mode="after")
    def _complete(self) -> ScaleOut:
        needed = {
            "fat_tree": ("nodes_per_leaf",),
            "fat_tree_3": ("nodes_per_leaf", "leaves_per_pod"),
            "dragonfly": ("nodes_per_leaf", "leaves_per_pod"),
            "torus": ("dimensions",),
        }
        for field in needed.get(self.kind, ()):
            if getattr(self, field) is None:
                message = f"kind {self.kind} needs {field}; accepted: a whole number >= 1"
                raise ValueError(message)
        if self.num_spines is not None and self.kind != "fat_tree":
            message = f"num_spines goes with kind fat_tree; got kind {self.kind}"
            raise ValueError(message)
        return self


class Cluster(Sourced):
    """Equal nodes and the network between them. Ranks are devices, counted node by node.

    Attributes
    ----------
    node : Node
        Every node.
    num_nodes : int
        Nodes of the cluster. [-]
    scale_up_domain_nodes : int
        Nodes whose devices share one scale-up fabric (18 trays in an NVL72 rack). [-]
    scale_out : ScaleOut
        Network between nodes.
    """

    node: Node
    num_nodes: Count = 1
    scale_up_domain_nodes: Count = 1
    scale_out: ScaleOut

    @model_validator(mode="after")
    def _consistent(self) -> Cluster:
        domain = self.scale_up_domain_nodes
        if domain > 1 and self.node.scale_up_kind != "nvswitch":
            message = f"scale_up_domain_nodes={domain} needs node.scale_up_kind nvswitch"
            raise ValueError(message)
        if self.num_nodes > domain and (self.scale_out.kind == "none" or self.node.num_nics == 0):
            message = f"num_nodes={self.num_nodes} needs a network: scale_out.kind and node.num_nics"
            raise ValueError(message)
        shape = self.scale_out.dimensions
        if shape is not None and prod(shape) != self.num_nodes:
            held = f"scale_out.dimensions={list(shape)} hold {prod(shape)} nodes"
            message = f"{held}; accepted: num_nodes={self.num_nodes}"
            raise ValueError(message)
        return self

    @property
    def devices_per_node(self) -> int:
        """Devices in one node."""
        return self.node.num_devices

    @property
    def num_devices(self) -> int:
        """Ranks of the cluster."""
        return self.num_nodes * self.node.num_devices

    @property
    def devices_per_domain(self) -> int:
        """Ranks that share a scale-up fabric, at most."""
        return min(self.scale_up_domain_nodes, self.num_nodes) * self.node.num_devices

    @property
    def num_domains(self) -> int:
        """Scale-up domains, the last one possibly partial."""
        return -(-self.num_devices // self.devices_per_domain)

    @property
    def nic_bandwidth_per_device_bytes_per_s(self) -> float:
        """Network rate of one device when all send at once, one direction, in bytes/s; 0 without NICs."""
        if self.node.nic is None:
            return 0.0
        return self.node.nic.bandwidth_bytes_per_s * self.node.num_nics / self.node.num_devices

    def node_of(self, rank: Indices) -> Indices:
        """Node index of each rank, ``(...)``."""
        return np.asarray(rank) // self.node.num_devices

    def domain_of(self, rank: Indices) -> Indices:
        """Scale-up domain of each rank, ``(...)``."""
        return np.asarray(rank) // self.devices_per_domain

    def rail_of(self, rank: Indices) -> Indices:
        """Network attachment (rail) of each rank inside its node, ``(...)``; 0 without NICs."""
        local = np.asarray(rank) % self.node.num_devices
        return local * max(self.node.num_rails, 1) // self.node.num_devices
