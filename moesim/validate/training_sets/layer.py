"""One expert layer with even loads on a described machine, as papers measure it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from moesim.evidence import Estimate
from moesim.hardware.schema import Cluster, Device
from moesim.kernels.choose import cost_of
from moesim.kernels.cost import KernelCost
from moesim.kernels.histogram import ExpertLoad
from moesim.model.dtypes import bytes_per_element
from moesim.model.ops import GroupedExperts, MemoryBound
from moesim.network.exchanges.base import Exchange, Load, exchange, exchanges
from moesim.network.fabric import AUTO, Fabric
from moesim.network.traffic import PortTokens
from moesim.training.overlaps import Triple

Phase = Literal["dispatch", "combine"]


@dataclass(frozen=True)
class Machine:
    """The first ``num_ranks`` devices of a cluster: their kernels and links, built once for many layers."""

    device: Device
    cost: KernelCost
    fabric: Fabric
    near: NDArray[np.float64]

    @classmethod
    def of(cls, cluster: Cluster, num_ranks: int) -> Machine:
        """Of a described cluster."""
        fabric = Fabric.of(cluster, num_ranks)
        members = np.bincount(fabric.domain)
        device = cluster.node.device
        return cls(device, cost_of(device), fabric, np.asarray(members[fabric.domain] - 1.0))

    @property
    def num_ranks(self) -> int:
        """Devices. [-]"""
        return len(self.near)


@dataclass(frozen=True)
class EvenLayer:
    """Expert layer whose tokens choose every expert equally often.

    Attributes
    ----------
    machine : Machine
    tokens : float
        Of each rank. [tokens]
    num_experts, top_k, hidden, width : int
    gated : bool
    dtype : str
    exchange : str
        Registered exchange, or ``auto``.
    """

    machine: Machine
    tokens: float
    num_experts: int
    top_k: int
    hidden: int
    width: int
    gated: bool
    dtype: str = "bf16"
    exchange: str = AUTO

    @property
    def cost(self) -> KernelCost:
        """Seconds of operations on a device."""
        return self.machine.cost

    @property
    def fabric(self) -> Fabric:
        """Links between the ranks."""
        return self.machine.fabric

    @cached_property
    def algorithm(self) -> Exchange | None:
        """The named exchange; None: whichever is the cheapest, also where the named one does not apply."""
        return exchanges.build(self.exchange) if self.exchange != AUTO else None

    @property
    def num_ranks(self) -> int:
        """Expert-parallel ranks. [-]"""
        return self.machine.num_ranks

    @property
    def rows(self) -> float:
        """Rows that a rank sends, and that its experts get. [rows]"""
        return self.tokens * self.top_k

    @property
    def payload_bytes(self) -> float:
        """Of a row. [bytes]"""
        return self.hidden * bytes_per_element(self.dtype)

    def exchange_s(self, phase: Phase, fraction: float = 1.0) -> Estimate:
        """Dispatch or combine of a fraction of the rows."""
        if self.num_ranks == 1:
            return Estimate(0.0, "all_to_all", "roofline", 0.0)
        near = self.machine.near
        each = self.rows * fraction / self.num_ranks
        up, out = each * near, each * (self.num_ranks - 1 - near)
        load = Load(
            phase,
            PortTokens(up, up, out, out),
            self.payload_bytes,
            np.arange(self.num_ranks),
            self.tokens * fraction,
            self.num_experts,
            "expert",
        )
        named = self.algorithm.price(load, self.fabric) if self.algorithm is not None else None
        found = exchange(load, self.machine.fabric)[1] if named is None else named
        return replace(found, seconds=float(np.max(found.seconds)))

    def experts_s(self, fraction: float = 1.0, dtype: str = "") -> Estimate:
        """Products of a fraction of the rows, even over the rank's experts."""
        held = max(self.num_experts // self.num_ranks, 1)
        counts = np.full(held, round(self.rows * fraction / held), np.int64)
        form = dtype or self.dtype
        op = GroupedExperts("experts", self.hidden, self.width, self.gated, form, form, held, self.top_k)
        return self.cost.experts(op, ExpertLoad.of(counts))

    def permutes_s(self) -> float:
        """Sorting the rows and summing them again, where the products do not do it: read, write, read. [s]"""
        if self.cost.permutes(
            GroupedExperts("e", self.hidden, self.width, self.gated, self.dtype, self.dtype, 1)
        ):
            return 0.0
        return self.passes_s(4)

    def passes_s(self, times: float) -> float:
        """Reading or writing all rows ``times``. [s]"""
        moved = times * self.rows * self.payload_bytes
        return float(np.asarray(self.cost.op(MemoryBound("rows", moved)).seconds))

    def triple(self, exchange_sms: int = 20) -> Triple:
        """The layer's curves, with the multiprocessors that an exchange keeps busy."""
        return Triple(
            cache(lambda fraction: self.exchange_s("dispatch", fraction)),
            cache(self.experts_s),
            cache(lambda fraction: self.exchange_s("combine", fraction)),
            group=np.zeros(2, np.int64),
            num_sms=self.machine.device.num_units,
            exchange_sms=exchange_sms,
        )
