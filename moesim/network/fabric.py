"""What collectives need to know of a cluster: who shares a scale-up domain, and the two link classes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from moesim.evidence import Estimate, Grade, Seconds
from moesim.files import find, read_tree, validated

if TYPE_CHECKING:
    from moesim.hardware.schema import Cluster


class LinkEfficiency(BaseModel):
    """Fixed cost and reached rate of one collective family."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bandwidth_fraction: float = Field(gt=0, le=1)
    base_s: float = Field(ge=0)
    per_peer_s: float = Field(ge=0)
    sigma: float = Field(ge=0)


class NetworkEfficiencies(BaseModel):
    """Every family's :class:`LinkEfficiency` and the evidence for it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int
    name: str
    grade: Grade
    families: dict[str, LinkEfficiency]
    nic_bandwidth_fraction: float = Field(gt=0, le=1)
    sources: dict[str, str]


@lru_cache
def roofline_efficiencies() -> NetworkEfficiencies:
    """Efficiencies shipped in ``calibration/roofline/network.yaml``."""
    return validated(NetworkEfficiencies, read_tree(find("network", "calibration/roofline")))


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
    """

    domain: NDArray[np.int64]
    node: NDArray[np.int64]
    scale_up_bytes_per_s: float
    nic_bytes_per_s: float
    scale_up_latency_s: float
    scale_out_latency_s: float
    oversubscription_ratio: float
    efficiencies: NetworkEfficiencies

    @property
    def num_ranks(self) -> int:
        """Ranks in use."""
        return len(self.domain)

    @classmethod
    def of(cls, cluster: Cluster, num_ranks: int) -> Fabric:
        """Fabric seen by the first ``num_ranks`` devices of ``cluster``."""
        ranks = np.arange(num_ranks)
        node = cluster.node
        # without a device fabric peers talk through the host links, and sockets through shared memory
        local = node.scale_up or node.host.pcie or node.host.dram
        return cls(
            domain=np.asarray(cluster.domain_of(ranks)),
            node=np.asarray(cluster.node_of(ranks)),
            scale_up_bytes_per_s=local.bandwidth_bytes_per_s,
            nic_bytes_per_s=cluster.nic_bandwidth_per_device_bytes_per_s,
            scale_up_latency_s=local.latency_s,
            scale_out_latency_s=cluster.scale_out.latency_s + (node.nic.latency_s if node.nic else 0.0),
            oversubscription_ratio=cluster.scale_out.oversubscription_ratio,
            efficiencies=roofline_efficiencies(),
        )

    def link(self, ranks: NDArray[np.int64]) -> tuple[float, float]:
        """Rate and latency of the slowest link class among ``ranks``. [bytes/s], [s]"""
        if len(np.unique(self.domain[ranks])) == 1:
            return self.scale_up_bytes_per_s, self.scale_up_latency_s
        return self.nic_rate, self.scale_out_latency_s

    @property
    def nic_rate(self) -> float:
        """Reached rate between nodes per rank, oversubscription included. [bytes/s]"""
        return self.nic_bytes_per_s * self.efficiencies.nic_bandwidth_fraction / self.oversubscription_ratio

    def estimate(self, seconds: Seconds, family: str) -> Estimate:
        """Duration with this tier's evidence."""
        efficiency = self.efficiencies.families[family]
        return Estimate(seconds, family, self.efficiencies.grade, efficiency.sigma)
