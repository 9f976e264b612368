"""Switch Transformers: one expert a token, or none where its capacity in the sequence is used up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moesim.traces.capture.adapters import Choices, Point, adapters, child, class_name


@adapters.register("switch")
@dataclass(frozen=True)
class Switch:
    """Choices are the router's dispatch mask, after tokens beyond the capacity were dropped."""

    def point(self, block: Any) -> Point | None:
        """Result of the router: mask ``(requests, tokens, experts)`` and probability of the choice."""
        if class_name(block) != "SwitchTransformersSparseMLP":
            return None
        return Point(child(block, "router"), _read, after=True)


def _read(result: Sequence[Any]) -> Choices:
    mask, weights = result[0], result[1]
    mask = mask.reshape(-1, mask.shape[-1])
    kept = mask.amax(dim=-1, keepdim=True) > 0
    return mask.argmax(dim=-1, keepdim=True).masked_fill(~kept, mask.shape[-1]), weights.reshape(-1, 1)
