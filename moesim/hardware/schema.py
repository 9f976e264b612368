"""What a machine is: frozen, validated descriptions of devices, nodes and clusters.

Nothing here knows a model, a plan or a duration. Numbers are SI base units; peaks are dense;
bandwidths are per direction. Where each number comes from sits beside it under ``sources``.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from moesim.errors import InputError, did_you_mean
from moesim.evidence import GRADES

Positive: TypeAlias = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
NonNegative: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]
Count: TypeAlias = Annotated[int, Field(ge=1, strict=True)]
Indices: TypeAlias = NDArray[np.integer]

DeviceKind: TypeAlias = Literal["gpu", "cpu", "pim", "npu", "fpga"]
ScaleUpKind: TypeAlias = Literal["nvswitch", "nvlink_pairs", "xgmi_mesh", "pcie", "none"]
ScaleOutKind: TypeAlias = Literal["rail_optimised", "fat_tree", "none"]

SOURCE_GRADES = ("datasheet", *(g for g in GRADES if g != "interpolated"))
"""First word of a source: ``datasheet | measured | fitted | roofline | assumed``."""

WIDER: dict[str, tuple[str, ...]] = {
    "nvfp4": ("mxfp4", "fp8", "bf16", "fp16", "tf32", "fp32"),
    "mxfp4": ("nvfp4", "fp8", "bf16", "fp16", "tf32", "fp32"),
    "int4": ("int8", "bf16", "fp16", "tf32", "fp32"),
    "fp8": ("bf16", "fp16", "tf32", "fp32"),
    "int8": ("bf16", "fp16", "tf32", "fp32"),
    "bf16": ("fp16", "tf32", "fp32"),
    "fp16": ("bf16", "tf32", "fp32"),
    "tf32": ("fp32",),
    "fp32": (),
}
"""Where arithmetic runs, in order, when a device lacks the datatype itself.

Narrow weights are widened before the multiplication; the two 4-bit and the two 16-bit floats stand
in for one another (same width, converted when the weights are loaded).
"""
DTYPES = tuple(WIDER)


class Described(BaseModel):
    """Base of all descriptions: immutable, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class MemoryTier(Described):
    """One memory: how much, how fast, how far.

    Attributes
    ----------
    capacity_bytes : float
        Usable size. [bytes]
    bandwidth_bytes_per_s : float
        Sustained peak of reads. [bytes/s]
    latency_s : float
        From request to first byte. [s]
    """

    capacity_bytes: Positive
    bandwidth_bytes_per_s: Positive
    latency_s: NonNegative = 0.0


class Link(Described):
    """One attachment to a fabric.

    Attributes
    ----------
    bandwidth_bytes_per_s : float
        One direction, per attachment (device, NIC); both directions run at once. [bytes/s]
    latency_s : float
        End to end for a message of no bytes. [s]
    """

    bandwidth_bytes_per_s: Positive
    latency_s: NonNegative


class Sourced(Described):
    """A description with a name and the origin of its numbers.

    Attributes
    ----------
    schema_version : int
        Version of the file format.
    name : str
        Equal to the name of its file.
    sources : dict
        ``{dotted path of a field or of a part: 'grade: where it was found'}``.
    """

    schema_version: Literal[1] = 1
    name: str = Field(default="unnamed", min_length=1)
    sources: dict[str, str] = Field(default_factory=dict)

    @field_validator("sources")
    @classmethod
    def _graded(cls, sources: dict[str, str]) -> dict[str, str]:
        wrong = [f"{k}: {text!r}" for k, text in sources.items() if not _is_graded(text)]
        if wrong:
            accepted = f"'GRADE: text' with a grade of {', '.join(SOURCE_GRADES)}"
            message = f"{'; '.join(wrong)} does not begin with a grade; accepted: {accepted}"
            raise ValueError(message)
        return sources

    def source_of(self, path: str) -> str:
        """Source text of the field at a dotted path: the most specific entry that covers it, else empty."""
        return source_in(self.sources, path)


def _is_graded(text: str) -> bool:
    grade, colon, rest = text.partition(":")
    return grade in SOURCE_GRADES and bool(colon and rest.strip())


def source_in(sources: dict[str, str], path: str) -> str:
    """Longest entry of ``sources`` that is ``path`` or a part that holds it, else an empty string."""
    parts = path.split(".")
    for stop in range(len(parts), 0, -1):
        text = sources.get(".".join(parts[:stop]))
        if text:
            return text
    return ""


class Device(Sourced):
    """Something that computes next to a memory: GPU, CPU socket, near-memory unit, NPU, FPGA.

    Attributes
    ----------
    peak_flops_per_s : dict
        ``{dtype: dense peak}`` of natively supported datatypes; one multiply-add is two. [FLOP/s]
    memory : dict
        ``{tier: MemoryTier}``; the first is the main memory.
    num_units : int
        SMs, CUs, cores or near-memory units. [-]
    clock_hz : float, optional
        Sustained boost clock behind the peaks. [1/s]
    l2_bytes : float, optional
        Last-level cache. [bytes]
    launch_s : float
        Smallest time between two kernels (inside a graph on a GPU, a parallel region on a CPU). [s]
    idle_w, busy_w : float
        Power when idle and under full load. [W]
    price_per_hour_usd : float, optional
        Rental price. [USD/h]
    area_mm2 : float, optional
        Silicon area. [mm2]
    host_memory_of : str, optional
        Kind ``pim`` only: name of the device whose memory it works in.
    """

    kind: DeviceKind
    peak_flops_per_s: dict[str, Positive] = Field(min_length=1)
    memory: dict[str, MemoryTier] = Field(min_length=1)
    num_units: Count
    clock_hz: Positive | None = None
    l2_bytes: Positive | None = None
    launch_s: NonNegative
    idle_w: NonNegative
    busy_w: Positive
    price_per_hour_usd: NonNegative | None = None
    area_mm2: Positive | None = None
    host_memory_of: str | None = None

    @field_validator("peak_flops_per_s")
    @classmethod
    def _known_dtypes(cls, peaks: dict[str, float]) -> dict[str, float]:
        for dtype in peaks:
            if dtype not in WIDER:
                message = (
                    f"unknown dtype {dtype!r}{did_you_mean(dtype, DTYPES)}; accepted: {', '.join(DTYPES)}"
                )
                raise ValueError(message)
        return peaks

    @model_validator(mode="after")
    def _consistent(self) -> Device:
        if self.busy_w < self.idle_w:
            message = f"busy_w={self.busy_w:g} is below idle_w={self.idle_w:g}"
            raise ValueError(message)
        if self.host_memory_of is not None and self.kind != "pim":
            message = f"host_memory_of is for kind pim; kind is {self.kind}"
            raise ValueError(message)
        return self

    @property
    def main_memory(self) -> MemoryTier:
        """First listed memory tier."""
        return next(iter(self.memory.values()))

    def compute_dtype(self, dtype: str) -> str:
        """Datatype the arithmetic runs in for operands stored as ``dtype``.

        Raises
        ------
        InputError
            Unknown datatype, or neither it nor a wider one is supported.
        """
        if dtype not in WIDER:
            raise InputError.at("dtype", dtype, ", ".join(DTYPES))
        for candidate in (dtype, *WIDER[dtype]):
            if candidate in self.peak_flops_per_s:
                return candidate
        supported = ", ".join(self.peak_flops_per_s)
        raise InputError.at("dtype", dtype, f"what {self.name} computes, {supported}, or a narrower one")

    def dense_peak_flops_per_s(self, dtype: str) -> float:
        """Dense peak for operands stored as ``dtype``, in FLOP/s; see :meth:`compute_dtype`."""
        return self.peak_flops_per_s[self.compute_dtype(dtype)]


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
    ssd, cxl : MemoryTier, optional
        Slower tiers of the node.
    """

    cpu: Device
    num_sockets: Count
    dram: MemoryTier
    pcie: Link | None
    devices_per_pcie_switch: Count = 1
    ssd: MemoryTier | None = None
    cxl: MemoryTier | None = None


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
    host : Host
        Processors and memories.
    nic : Link or None
        One network port.
    num_nics : int
        Ports of the node; a multiple or a divisor of ``num_devices``, or 0. [-]
    """

    device: Device
    num_devices: Count
    pim: Device | None = None
    scale_up: Link | None
    scale_up_kind: ScaleUpKind
    host: Host
    nic: Link | None
    num_nics: Annotated[int, Field(ge=0, strict=True)]

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
        leaf of its group) or ``none``.
    oversubscription_ratio : float
        Down-link over up-link capacity of a leaf. [-]
    latency_s : float
        Added by each switch on the way. [s]
    nodes_per_leaf : int, optional
        Nodes whose NICs share a leaf; None: all of them (rail-optimised only).
    """

    kind: ScaleOutKind
    oversubscription_ratio: Annotated[float, Field(ge=1, allow_inf_nan=False, strict=True)] = 1.0
    latency_s: NonNegative = 0.0
    nodes_per_leaf: Count | None = None

    @model_validator(mode="after")
    def _leaf_size(self) -> ScaleOut:
        if self.kind == "fat_tree" and self.nodes_per_leaf is None:
            message = "kind fat_tree needs nodes_per_leaf; accepted: a whole number >= 1"
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
