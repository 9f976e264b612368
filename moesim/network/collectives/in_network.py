"""In-network all-reduce: the switch adds (NVLink SHARP)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moesim.evidence import Seconds
from moesim.network.collectives.base import Group, all_reduces


@all_reduces.register("in_network")
@dataclass(frozen=True)
class InNetworkAllReduce:
    """The switch sums and multicasts: each port carries the buffer once; inside a scale-up domain."""

    is_usual: ClassVar[bool] = False

    def seconds(self, payload_bytes: Seconds, group: Group) -> Seconds | None:
        r"""Two hops and one buffer: :math:`2 \alpha + n / \beta`; None between domains or for one rank."""
        if group.num_domains > 1 or group.num_ranks == 1:
            return None
        return 2 * group.hop_s + payload_bytes / group.bytes_per_s
