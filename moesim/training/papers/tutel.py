"""Tutel's switch of parallelism: one layout of weights, executed in any of several ways (arXiv:2206.03382).

An expert's weights lie in shards on the ``ranks / experts`` ranks that share it. A degree ``r`` says how they
work. ``0``: every rank gathers all experts and keeps its tokens (data parallel). ``r >= 1``: tokens travel to
experts, each repeated for ``r`` shards, and shards are gathered among ``ranks / experts / r`` ranks. Both are
volumes that a rank sends; no weight is moved by a switch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Volumes:
    """What a rank sends in one pass of a layer.

    Attributes
    ----------
    token_bytes : float
        Rows to their experts and back. [bytes]
    weight_bytes : float
        Weights gathered before the forward pass; backward, their gradients scattered. [bytes]
    """

    token_bytes: float
    weight_bytes: float

    @property
    def total_bytes(self) -> float:
        """Both. [bytes]"""
        return self.token_bytes + self.weight_bytes


def volumes(
    degree: int, *, ranks: int, experts: int, row_bytes: float, rows: float, expert_bytes: float
) -> Volumes:
    """Bytes a rank sends with one degree.

    Parameters
    ----------
    degree : int
        0 or a divisor of ``ranks / experts``, see the module. [-]
    ranks, experts : int
    row_bytes, expert_bytes : float
        Of a row; of one whole expert. [bytes]
    rows : float
        That a rank sends to experts, capacity included. [rows]

    Examples
    --------
    >>> few = volumes(1, ranks=64, experts=16, row_bytes=4096, rows=8192, expert_bytes=2**24)
    >>> many = volumes(4, ranks=64, experts=16, row_bytes=4096, rows=8192, expert_bytes=2**24)
    >>> many.token_bytes == 4 * few.token_bytes, many.weight_bytes
    (True, 0.0)
    """
    if degree == 0:
        return Volumes(0.0, experts * expert_bytes * (ranks - 1) / ranks)
    shards = max(ranks // experts, 1)
    gathered = shards // degree
    away = (ranks - 1) / ranks
    return Volumes(
        2 * degree * rows * row_bytes * away,
        expert_bytes / degree * (gathered - 1) / gathered,
    )


def degrees(ranks: int, experts: int) -> list[int]:
    """Every degree: 0, and the divisors of the ranks that share an expert."""
    shards = max(ranks // experts, 1)
    return [0, *(r for r in range(1, shards + 1) if shards % r == 0)]


def best_degree(choices: Sequence[int], seconds: Sequence[float]) -> int:
    """Degree of the least time; the smaller of two equal ones."""
    return min(zip(seconds, choices, strict=True))[1]
