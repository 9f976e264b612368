"""The members every token mixer has, and small helpers they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from moesim.model.dtypes import bytes_per_element
from moesim.model.ops import MemoryBound, Op, Quantity, Segment, Sharding


class Attention(Protocol):
    """A token mixer of one layer; frozen, hashable, knows nothing about devices."""

    @property
    def kind(self) -> str:
        """Word for tables: ``gqa``, ``mla``, ``gated_delta_net``, ``mamba``."""

    @property
    def sharded_counts(self) -> Mapping[str, int]:
        """Named head counts that tensor parallelism divides; each must be a multiple of the degree.

        The degree may also be a multiple of ``num_kv_heads``: those are replicated.
        """

    @property
    def cached_tokens_max(self) -> int | None:
        """Most tokens whose keys and values stay cached; None when all do. [tokens]"""

    def parameters(self, hidden: int, tp: int = 1) -> int:
        """Parameters on one of ``tp`` ranks, replicated ones included; the whole for ``tp=1``. [-]"""

    def kv_bytes_per_token(self, kv_dtype: str, tp: int = 1) -> float:
        """Cache of one token of context on one of ``tp`` ranks. [bytes]"""

    def state_bytes(self, tp: int = 1) -> float:
        """Recurrent state of one sequence on one of ``tp`` ranks, whatever its length. [bytes]"""

    def ops(self, hidden: int, segments: Sequence[Segment], sharding: Sharding) -> list[Op]:
        """Operations on one rank, without the layer norm before it."""


def total_tokens(segments: Sequence[Segment]) -> Quantity:
    """New tokens of all segments. [tokens]"""
    total: Quantity = 0.0
    for segment in segments:
        total = total + segment.tokens
    return total


def elementwise(name: str, tokens: Quantity, elements_per_token: float, dtype: str) -> MemoryBound:
    """Operation that moves ``elements_per_token`` numbers (reads plus writes) for each token."""
    return MemoryBound(name, tokens * (elements_per_token * bytes_per_element(dtype)))


def local_kv_heads(num_kv_heads: int, tp: int) -> int:
    """Key/value heads on a rank: divided, then replicated once there are more ranks than heads."""
    return max(1, num_kv_heads // tp)
