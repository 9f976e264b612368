"""No token mixer: a layer that only repeats the experts of the one before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moesim.model.ops import Op, Segment, Sharding


@dataclass(frozen=True, slots=True)
class NoMixer:
    """Nothing happens between tokens; nothing is cached."""

    @property
    def kind(self) -> str:
        """``again``."""
        return "again"

    @property
    def sharded_counts(self) -> Mapping[str, int]:
        """No heads."""
        return {}

    @property
    def cached_tokens_max(self) -> int | None:
        """Nothing is cached: no limit."""
        return None

    def parameters(self, hidden: int, tp: int = 1) -> int:
        """None. [-]"""
        return 0

    def kv_bytes_per_token(self, kv_dtype: str, tp: int = 1) -> float:
        """None. [bytes]"""
        return 0.0

    def state_bytes(self, tp: int = 1) -> float:
        """None. [bytes]"""
        return 0.0

    def ops(self, hidden: int, segments: Sequence[Segment], sharding: Sharding) -> list[Op]:
        """None."""
        return []
