"""Two-shot all-reduce: reduce-scatter by direct reads, then all-gather; two hops, least bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moesim.evidence import Seconds
from moesim.network.collectives.base import Group, all_reduces


@all_reduces.register("two_shot")
@dataclass(frozen=True)
class TwoShotAllReduce:
    """Each rank sums its share of all buffers, then reads the other shares; inside a scale-up domain."""

    is_usual: ClassVar[bool] = False

    def seconds(self, payload_bytes: Seconds, group: Group) -> Seconds | None:
        r"""Two hops: :math:`2 \alpha + 2 \frac{p - 1}{p} n / \beta`; None between domains."""
        if group.num_domains > 1:
            return None
        share = (group.num_ranks - 1) / group.num_ranks
        return (2 * group.hop_s if share else 0.0) + 2 * share * payload_bytes / group.bytes_per_s
