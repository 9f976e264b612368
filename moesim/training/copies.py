"""What it takes to send experts to the ranks that help with them, and to return their gradients."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from moesim.evidence import Estimate
from moesim.network.collectives.group import all_gather, reduce_scatter
from moesim.network.exchanges.base import Load, Phase, exchange
from moesim.network.fabric import Fabric
from moesim.training.spread import Spread

MESSAGES = "pairwise"
"""Exchange of single experts, which are nobody's tokens: messages between pairs of ranks."""


def copies_s(
    spread: Spread, weight_bytes: float, gradient_bytes: float, ranks: NDArray[np.int64], fabric: Fabric
) -> tuple[Estimate, Estimate]:
    """Weights there in a forward pass, gradients back in a backward pass, each ``(draw, layer)``. [s]

    Copies that are known ahead are gathered and their gradients reduced by collectives; what stays for a step
    is sent once for all its microbatches. Others are messages of single experts.

    Parameters
    ----------
    weight_bytes, gradient_bytes : float
        Of one expert, what a rank has of its width. [bytes]
    ranks : ndarray of int, ``(rank,)``
        Of the group.
    """
    if not spread.ahead:
        return (
            _messages(spread, weight_bytes, "dispatch", ranks, fabric),
            _messages(spread, gradient_bytes, "combine", ranks, fabric),
        )
    there = _collective(spread, weight_bytes, ranks, fabric)
    back = _collective(spread, gradient_bytes, ranks, fabric, reduces=True)
    if spread.twice:
        return there, replace(back, seconds=back.seconds + there.seconds)
    share = spread.passes_share
    return replace(there, seconds=there.seconds * share), replace(back, seconds=back.seconds * share)


def _messages(
    spread: Spread, expert_bytes: float, phase: Phase, ranks: NDArray[np.int64], fabric: Fabric
) -> Estimate:
    """Whole experts between pairs of ranks."""
    ports = spread.sent_ports(np.asarray(fabric.domain[ranks]))
    apart = replace(fabric, communication=replace(fabric.communication, exchange=MESSAGES))
    load = Load(
        phase=phase,
        ports=ports if phase == "dispatch" else ports.transposed(),
        row_bytes=expert_bytes,
        ranks=ranks,
        tokens_per_rank=1.0,
        num_experts=spread.home.shape[-1],
        deduplicate="expert",
    )
    return exchange(load, apart)[1]


def _collective(
    spread: Spread,
    expert_bytes: float,
    ranks: NDArray[np.int64],
    fabric: Fabric,
    *,
    reduces: bool = False,
) -> Estimate:
    """Sparse gather or reduction: a dense one that brings as many bytes into the fullest domain, or rank.

    An expert enters a domain once, in parts through all its ports, and is passed on inside.
    """
    collective = reduce_scatter if reduces else all_gather
    domain = np.asarray(fabric.domain[ranks])
    inside = ranks[domain == domain[0]]
    reaches = ((domain, ranks, len(np.unique(domain))), (np.arange(len(ranks)), inside, len(inside)))
    found = [
        collective(spread.entering(of) * expert_bytes * parts / (parts - 1), group, fabric)
        for of, group, parts in reaches
        if parts > 1
    ]
    return max(found, key=lambda one: float(np.max(one.seconds)))
