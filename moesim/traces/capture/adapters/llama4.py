"""Llama 4: every expert sees every token, scaled by a score that is zero unless it was chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moesim.traces.capture.adapters import Point, adapters, child, class_name


@adapters.register("llama4")
@dataclass(frozen=True)
class Llama4:
    """Choices are the ``top_k`` scores ``(tokens, experts)`` that scale the experts' input."""

    def point(self, block: Any) -> Point | None:
        """Result of the router."""
        if class_name(block) != "Llama4TextMoe":
            return None
        router = child(block, "router")
        return Point(router, lambda result: _largest(result[0], router.top_k), after=True)


def _largest(scores: Any, slots: int) -> tuple[Any, Any]:
    weights, ids = scores.topk(slots, dim=-1)
    return ids, weights
