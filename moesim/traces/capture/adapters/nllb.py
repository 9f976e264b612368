"""NLLB-MoE: two experts a token, fewer where their capacity in the batch is used up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moesim.traces.capture.adapters import Choices, Point, adapters, child, class_name

SLOTS = 2


@adapters.register("nllb")
@dataclass(frozen=True)
class Nllb:
    """Choices are the experts with a weight in the router's combination ``(tokens, experts)``."""

    def point(self, block: Any) -> Point | None:
        """Result of the router."""
        if class_name(block) != "NllbMoeSparseMLP":
            return None
        return Point(child(block, "router"), _read, after=True)


def _read(result: Sequence[Any]) -> Choices:
    combination = result[1]
    weights, ids = combination.topk(SLOTS, dim=-1)
    return ids.masked_fill(weights <= 0, combination.shape[-1]), weights
