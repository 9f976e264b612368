"""JetMoE: experts in the feed-forward and in the attention part of a layer, tokens sorted by expert."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moesim.traces.capture.adapters import Choices, Point, adapters, child, class_name


@adapters.register("jetmoe")
@dataclass(frozen=True)
class JetMoe:
    """Choices are undone from the order in which the router sorts pairs of token and slot."""

    def point(self, block: Any) -> Point | None:
        """Result of the router."""
        if class_name(block) not in ("JetMoeMoE", "JetMoeMoA"):
            return None
        router = child(block, "router")
        return Point(router, lambda result: _read(result, router.top_k), after=True)


def _read(result: Sequence[Any], slots: int) -> Choices:
    order, _, gates, sizes, logits = result
    tokens_of_expert = order.new_tensor(sizes)
    experts = order.new_tensor(range(len(sizes))).repeat_interleave(tokens_of_expert)
    ids = order.new_empty(order.shape[0]).scatter(0, order, experts)
    weights = gates.new_empty(gates.shape[0]).scatter(0, order, gates)
    return ids.reshape(len(logits), slots), weights.reshape(len(logits), slots)
