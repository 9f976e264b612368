"""One-shot all-reduce: every rank reads every peer's whole buffer; one hop, most bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moesim.evidence import Seconds
from moesim.network.collectives.base import Group, all_reduces


@all_reduces.register("one_shot")
@dataclass(frozen=True)
class OneShotAllReduce:
    """Every rank reads all peers at once; for small messages inside a scale-up domain."""

    is_usual: ClassVar[bool] = False

    def seconds(self, payload_bytes: Seconds, group: Group) -> Seconds | None:
        r"""One hop: :math:`\alpha + (p - 1) n / \beta`; None between domains."""
        if group.num_domains > 1:
            return None
        peers = group.num_ranks - 1
        return (group.hop_s if peers else 0.0) + peers * payload_bytes / group.bytes_per_s
