"""Two-shot all-reduce: reduce-scatter by direct reads, then all-gather; two hops, least bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from moesim.evidence import Estimate, Seconds
from moesim.network.collectives.base import Group, all_reduces, started
from moesim.network.fabric import Fabric


@all_reduces.register("two_shot")
@dataclass(frozen=True)
class TwoShotAllReduce:
    """Each rank sums its share of all buffers, then reads the other shares; inside a scale-up domain."""

    is_usual: ClassVar[bool] = False

    def price(self, payload_bytes: Seconds, ranks: NDArray[np.int64], fabric: Fabric) -> Estimate | None:
        r"""Two hops: :math:`2 \alpha + 2 \frac{p - 1}{p} n / \beta`; None between domains."""
        group = Group.of(ranks, fabric, "all_reduce")
        if group.num_domains > 1:
            return None
        share = (group.num_ranks - 1) / group.num_ranks
        seconds = 2 * group.hop_s + 2 * share * payload_bytes / group.bytes_per_s
        return started(seconds, group, fabric)
