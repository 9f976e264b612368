"""Collectives over a described fabric: link class, fixed costs, and the cheapest algorithm."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.evidence import Estimate, Seconds
from moesim.network.collectives.ring import ring_all_gather_s, ring_all_reduce_s
from moesim.network.collectives.tree import tree_all_reduce_s
from moesim.network.fabric import Fabric


def all_reduce(payload_bytes: Seconds, ranks: NDArray[np.int64], fabric: Fabric) -> Estimate:
    """All-reduce of ``payload_bytes`` among ``ranks``: the cheaper of ring and tree. [bytes] -> [s]"""
    rate, overhead_s, hop_s = _link(ranks, fabric, "all_reduce")
    ring_s, tree_s = (
        algorithm(payload_bytes, len(ranks), bandwidth_bytes_per_s=rate, latency_s=hop_s)
        for algorithm in (ring_all_reduce_s, tree_all_reduce_s)
    )
    return fabric.estimate(overhead_s + np.minimum(ring_s, tree_s), "all_reduce")


def all_gather(payload_bytes: Seconds, ranks: NDArray[np.int64], fabric: Fabric) -> Estimate:
    """Ring all-gather whose output is ``payload_bytes`` on each of ``ranks``. [bytes] -> [s]"""
    rate, overhead_s, hop_s = _link(ranks, fabric, "all_gather")
    seconds = ring_all_gather_s(payload_bytes, len(ranks), bandwidth_bytes_per_s=rate, latency_s=hop_s)
    return fabric.estimate(overhead_s + seconds, "all_gather")


def reduce_scatter(payload_bytes: Seconds, ranks: NDArray[np.int64], fabric: Fabric) -> Estimate:
    """Ring reduce-scatter of an input of ``payload_bytes`` on each of ``ranks``. [bytes] -> [s]"""
    rate, overhead_s, hop_s = _link(ranks, fabric, "reduce_scatter")
    seconds = ring_all_gather_s(payload_bytes, len(ranks), bandwidth_bytes_per_s=rate, latency_s=hop_s)
    return fabric.estimate(overhead_s + seconds, "reduce_scatter")


def send(payload_bytes: Seconds, pair: NDArray[np.int64], fabric: Fabric) -> Estimate:
    """Point-to-point message between the two ranks of ``pair``. [bytes] -> [s]"""
    rate, overhead_s, hop_s = _link(pair, fabric, "send")
    return fabric.estimate(overhead_s + hop_s + payload_bytes / rate, "send")


def _link(ranks: NDArray[np.int64], fabric: Fabric, family: str) -> tuple[float, float, float]:
    """Reached rate, fixed cost and hop latency of one family among ``ranks``."""
    efficiency = fabric.efficiencies.families[family]
    rate, hop_s = fabric.link(ranks)
    overhead_s = efficiency.base_s + efficiency.per_peer_s * (len(ranks) - 1) if len(ranks) > 1 else 0.0
    return rate * efficiency.bandwidth_fraction, overhead_s, hop_s if len(ranks) > 1 else 0.0
