"""One-shot all-reduce: every rank reads every peer's whole buffer; one hop, most bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from moesim.evidence import Estimate, Seconds
from moesim.network.collectives.base import Group, all_reduces, started
from moesim.network.fabric import Fabric


@all_reduces.register("one_shot")
@dataclass(frozen=True)
class OneShotAllReduce:
    """Every rank reads all peers at once; for small messages inside a scale-up domain."""

    is_usual: ClassVar[bool] = False

    def price(self, payload_bytes: Seconds, ranks: NDArray[np.int64], fabric: Fabric) -> Estimate | None:
        r"""One hop: :math:`\alpha + (p - 1) n / \beta`; None between domains."""
        group = Group.of(ranks, fabric, "all_reduce")
        if group.num_domains > 1:
            return None
        peers = group.num_ranks - 1
        seconds = group.hop_s + peers * payload_bytes / group.bytes_per_s
        return started(seconds, group, fabric)
