"""Hierarchical all-reduce: inside the scale-up domains first and last, a share between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from moesim.evidence import Estimate, Seconds
from moesim.network.collectives.base import all_reduces
from moesim.network.collectives.group import all_gather, reduce_scatter
from moesim.network.collectives.ring import RingAllReduce
from moesim.network.collectives.tree import TreeAllReduce
from moesim.network.fabric import Fabric


@all_reduces.register("hierarchical")
@dataclass(frozen=True)
class HierarchicalAllReduce:
    """Reduce-scatter in each domain, all-reduce of a share between domains, all-gather in each domain."""

    is_usual: ClassVar[bool] = True

    def price(self, payload_bytes: Seconds, ranks: NDArray[np.int64], fabric: Fabric) -> Estimate | None:
        """The three phases in turn, those in the domains as measured; None in one domain or uneven ones."""
        domains, sizes = np.unique(fabric.domain[ranks], return_counts=True)
        if len(domains) == 1 or sizes.min() != sizes.max() or sizes[0] == 1:
            return None
        local = ranks[fabric.domain[ranks] == domains[0]]
        across = np.array([ranks[fabric.domain[ranks] == domain][0] for domain in domains])
        inside = [kind(payload_bytes, local, fabric).seconds for kind in (reduce_scatter, all_gather)]
        share = payload_bytes / len(local)
        between = [kind().price(share, across, fabric).seconds for kind in (RingAllReduce, TreeAllReduce)]
        # all local ranks send at once, each over its own port or its share of one
        crowd = fabric.slowest_port(across) / fabric.slowest_port(ranks)
        best = min(between, key=lambda seconds: float(np.sum(seconds)))
        return fabric.estimate(sum(inside) + best * crowd, "all_reduce")
