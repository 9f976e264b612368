"""Evenly routed traffic: what exchanges are compared on before any token is routed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moesim.evidence import GRADES
from moesim.network.exchanges.base import Load, Phase, exchanges
from moesim.network.fabric import AUTO, Communication, Fabric
from moesim.network.forms import hit_probability
from moesim.network.traffic import Deduplication, PortTokens


@dataclass(frozen=True)
class Even:
    """Evenly routed tokens of one exchange.

    Attributes
    ----------
    ranks : ndarray of int, ``(rank,)``
        Members, equally many in each scale-up domain.
    tokens_per_rank : float
        Tokens that a rank holds. [tokens]
    num_experts, top_k : int
        Experts, and those of a token. [-]
    row_bytes : dict
        Payload of a token by phase. [bytes]
    most_domains : int, optional
        A token's experts lie in at most so many domains.
    """

    ranks: NDArray[np.int64]
    tokens_per_rank: float
    num_experts: int
    top_k: int
    row_bytes: dict[Phase, float]
    most_domains: int | None = None

    def load(self, phase: Phase, deduplicate: Deduplication, fabric: Fabric) -> Load:
        """Expected tokens through every port."""
        ranks = len(self.ranks)
        domains = len(np.unique(fabric.domain[self.ranks]))
        size, allowed = ranks / domains, min(domains, self.most_domains or domains)
        copies = float(self.top_k)
        ranks_hit = ranks * _hit(ranks, self.num_experts, self.top_k)
        domains_hit = allowed * _hit(allowed, self.num_experts * allowed / domains, self.top_k)
        up, out = {
            "expert": (copies * (size - 1) / ranks, copies * (1 - 1 / domains)),
            "rank": (ranks_hit * (size - 1) / ranks, ranks_hit * (1 - 1 / domains)),
            "node": (ranks_hit * (1 - 1 / size), domains_hit * (1 - 1 / domains)),
        }[deduplicate]
        both = [np.full((1, ranks), self.tokens_per_rank * part) for part in (up, up, out, out)]
        return Load(
            phase=phase,
            ports=PortTokens(*both),
            row_bytes=self.row_bytes[phase],
            ranks=self.ranks,
            tokens_per_rank=self.tokens_per_rank,
            num_experts=self.num_experts,
            deduplicate=deduplicate,
        )


def decided(fabric: Fabric, even: Even) -> Communication:
    """Communication with the exchange that moves ``even`` fastest, each counting tokens once as it does.

    A named exchange stays. Compared are those with the strongest evidence; the usual ones where none was
    measured.
    """
    communication = fabric.communication
    best: tuple[tuple[int, float], str] | None = None
    for name, kind in exchanges.items() if communication.exchange == AUTO else ():
        prices = [
            exchanges.build(name).price(even.load(phase, kind.deduplicates, fabric), fabric)
            for phase in ("dispatch", "combine")
        ]
        if any(price is None for price in prices):
            continue
        grade = max(GRADES.index(price.grade) for price in prices if price is not None)
        if grade >= GRADES.index("roofline") and not kind.is_usual:
            continue
        seconds = sum(float(np.sum(price.seconds)) for price in prices if price is not None)
        if best is None or (grade, seconds) < best[0]:
            best = (grade, seconds), name
    name = best[1] if best is not None else communication.exchange
    chosen = exchanges.classes[name] if name in exchanges.names() else None
    if chosen is None:
        return communication
    return replace(communication, exchange=name, deduplicate=chosen.deduplicates)


def _hit(parts: float, num_experts: float, top_k: int) -> float:
    return float(hit_probability(float(parts), float(num_experts), top_k))
