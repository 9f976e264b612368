"""What collectives need to know of a cluster: who shares a scale-up domain, and the two link classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from moesim.evidence import Estimate, Grade, Seconds
from moesim.files import find, read_tree, validated
from moesim.network.faults import Faults
from moesim.network.fit_file import NetworkFits, network_fits
from moesim.network.topology import Topology
from moesim.network.traffic import Deduplication

if TYPE_CHECKING:
    from moesim.hardware.schema import Cluster, Link, Node


class LinkEfficiency(BaseModel):
    """Fixed cost and reached rate of one collective family."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bandwidth_fraction: float = Field(gt=0, le=1)
    base_s: float = Field(ge=0)
    per_peer_s: float = Field(ge=0)
    sigma: float = Field(ge=0)


class MessageStart(BaseModel):
    """What a message between nodes costs beside its bytes over the link.

    Attributes
    ----------
    start_s : float
        Of any message. [s]
    slow_bytes, slow_bytes_per_s : float
        The first bytes of a message move at this rate: short messages do not fill a link. [bytes], [bytes/s]
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    start_s: float = Field(ge=0)
    slow_bytes: float = Field(ge=0)
    slow_bytes_per_s: float = Field(gt=0)

    def seconds(self, message_bytes: Seconds) -> Seconds:
        """Of one message. [s]"""
        return self.start_s + np.minimum(message_bytes, self.slow_bytes) / self.slow_bytes_per_s


class NetworkEfficiencies(BaseModel):
    """Every family's :class:`LinkEfficiency` and the evidence for it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int
    name: str
    grade: Grade
    families: dict[str, LinkEfficiency]
    nic_bandwidth_fraction: float = Field(gt=0, le=1)
    nic_message: MessageStart
    sources: dict[str, str]


@lru_cache
def roofline_efficiencies() -> NetworkEfficiencies:
    """Efficiencies shipped in ``calibration/roofline/network.yaml``."""
    return validated(NetworkEfficiencies, read_tree(find("network", "calibration/roofline")))


AUTO = "auto"


@dataclass(frozen=True)
class Communication:
    """Which algorithms move the bytes.

    Attributes
    ----------
    all_reduce, exchange : str
        Registered algorithm of tensor-parallel sums, and of dispatch and combine; ``auto``: the cheapest.
    deduplicate : str
        What dispatch sends once.
    sms : int
        Streaming multiprocessors of each device given to exchange kernels. [-]
    payload_ratio : float
        Bytes sent over bytes of the tokens: below 1 where they are compressed. [-]
    far_rate_fraction : float
        Rate of exchanges between more than four scale-up domains over that between fewer. [-]
    exchange_params : mapping
        Parameters of the named exchange.
    """

    all_reduce: str = AUTO
    exchange: str = AUTO
    deduplicate: Deduplication = "rank"
    sms: int = 20
    payload_ratio: float = 1.0
    far_rate_fraction: float = 1.0
    exchange_params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Fabric:
    """Link classes between ``num_ranks`` ranks.

    Attributes
    ----------
    domain, node : ndarray, ``(rank,)``
        Scale-up domain and node of each rank.
    scale_up_bytes_per_s, nic_bytes_per_s : float
        One direction, per rank, datasheet. [bytes/s]
    scale_up_latency_s, scale_out_latency_s : float
        One hop through the fabric. [s]
    oversubscription_ratio : float
        Leaf-to-spine oversubscription between nodes, 1 for full rate.
    port : ndarray of int, ``(rank,)``
        Network port that each rank sends through, a dead one replaced.
    port_share : float
        Ranks that a port is meant for, over ports: what ``nic_bytes_per_s`` of a rank is of a port's.
    scale_up_speed, port_speed : ndarray, ``(rank,)``
        Fraction of the rate that each rank's scale-up port, and the network port it uses, still reaches.
    device_speed : ndarray, ``(rank,)``
        Fraction of its own arithmetic and memory that each rank reaches.
    topology : Topology
        Every link of the cluster.
    communication : Communication
        Algorithms in use.
    fits : NetworkFits or None
        Measured curves of these devices.
    """

    domain: NDArray[np.int64]
    node: NDArray[np.int64]
    scale_up_bytes_per_s: float
    nic_bytes_per_s: float
    scale_up_latency_s: float
    scale_out_latency_s: float
    oversubscription_ratio: float
    port: NDArray[np.int64]
    port_share: float
    scale_up_speed: NDArray[np.float64]
    port_speed: NDArray[np.float64]
    device_speed: NDArray[np.float64]
    topology: Topology
    communication: Communication
    efficiencies: NetworkEfficiencies
    fits: NetworkFits | None

    @property
    def num_ranks(self) -> int:
        """Ranks in use."""
        return len(self.domain)

    @classmethod
    def of(
        cls,
        cluster: Cluster,
        num_ranks: int,
        communication: Communication | None = None,
        faults: Faults | None = None,
    ) -> Fabric:
        """Fabric seen by the first ``num_ranks`` devices of ``cluster``.

        Raises
        ------
        InputError
            A fault of something that the cluster does not have, or a node without a live network port.
        """
        ranks = np.arange(num_ranks)
        node, faults = cluster.node, faults or Faults()
        faults.check(cluster)
        local, rails = local_link(node), max(node.num_rails, 1)
        port = faults.live_ports(cluster)[ranks]
        return cls(
            domain=np.asarray(cluster.domain_of(ranks)),
            node=np.asarray(cluster.node_of(ranks)),
            scale_up_bytes_per_s=local.bandwidth_bytes_per_s,
            nic_bytes_per_s=cluster.nic_bandwidth_per_device_bytes_per_s,
            scale_up_latency_s=local.latency_s,
            scale_out_latency_s=cluster.scale_out.latency_s + (node.nic.latency_s if node.nic else 0.0),
            oversubscription_ratio=cluster.scale_out.oversubscription_ratio,
            port=port,
            port_share=node.num_devices / rails,
            scale_up_speed=faults.speeds(faults.scale_up_speed, num_ranks),
            port_speed=faults.speeds(faults.nic_speed, cluster.num_nodes * rails)[port],
            device_speed=faults.speeds(faults.device_speed, num_ranks),
            topology=Topology.of(cluster, faults),
            communication=communication or Communication(),
            efficiencies=roofline_efficiencies(),
            fits=network_fits(node.device.name),
        )

    def is_one_domain(self, ranks: NDArray[np.int64]) -> bool:
        """Whether all ``ranks`` share a scale-up fabric."""
        return len(np.unique(self.domain[ranks])) == 1

    def slowest_port(self, ranks: NDArray[np.int64]) -> float:
        """What is left to a rank when all of ``ranks`` send over their ports at once, 1 without faults."""
        users = np.bincount(self.port[ranks], minlength=int(self.port.max()) + 1)[self.port[ranks]]
        crowd = np.maximum(users / max(self.port_share, 1.0), 1.0)
        return float((self.port_speed[ranks] / crowd).min())

    def worst_scale_up(self, load: NDArray[np.float64], ranks: NDArray[np.int64]) -> NDArray[np.float64]:
        """Largest load of a scale-up port as a sound one would need, ``(..., rank) -> (...)``."""
        return np.asarray((load / self.scale_up_speed[ranks]).max(-1))

    def worst_nic(self, load: NDArray[np.float64], ranks: NDArray[np.int64]) -> NDArray[np.float64]:
        """Largest load of a port, as of one rank with a sound port of its own, ``(..., rank) -> (...)``."""
        ports, first, member = np.unique(self.port[ranks], return_index=True, return_inverse=True)
        if len(ports) < len(ranks):
            load = load @ (member[:, None] == np.arange(len(ports))).astype(np.float64)
        speed = self.port_speed[ranks][first]
        return np.asarray((load / (speed * self.port_share)).max(-1))

    @property
    def nic_rate(self) -> float:
        """Reached rate between nodes per rank, oversubscription included. [bytes/s]"""
        return self.nic_bytes_per_s * self.efficiencies.nic_bandwidth_fraction / self.oversubscription_ratio

    @property
    def link_ratio(self) -> float:
        """Rate of the scale-up links over that of the links that the curves were measured on."""
        return self.scale_up_bytes_per_s / self.fits.scale_up_bytes_per_s if self.fits else 1.0

    def extra_latency_s(self, *, between_domains: bool) -> float:
        """Latency of a hop here over that of the fabric that was measured; may be negative. [s]"""
        if self.fits is None:
            return 0.0
        if between_domains:
            return self.scale_out_latency_s - self.fits.scale_out_latency_s
        return self.scale_up_latency_s - self.fits.scale_up_latency_s

    def estimate(self, seconds: Seconds, family: str) -> Estimate:
        """Duration with the roofline's evidence."""
        efficiency = self.efficiencies.families[family]
        return Estimate(seconds, family, self.efficiencies.grade, efficiency.sigma)


def local_link(node: Node) -> Link | Any:
    """Link of a device to its peers in the node: without a fabric the host's, of sockets their memory."""
    return node.scale_up or node.peer or node.host.pcie or node.host.dram
