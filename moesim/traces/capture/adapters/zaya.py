"""ZAYA: one more choice than experts skips them; the router turns it into expert 0 of weight 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moesim.traces.capture.adapters import Choices, Point, adapters, child, class_name


@adapters.register("zaya")
@dataclass(frozen=True)
class Zaya:
    """Choices are what the experts are called with, less those of weight 0."""

    def point(self, block: Any) -> Point | None:
        """Arguments of the child ``experts``."""
        experts = child(block, "experts")
        if experts is None or class_name(experts) != "ZayaExperts":
            return None
        return Point(experts, _read)


def _read(arguments: Sequence[Any]) -> Choices:
    ids, weights = arguments[1], arguments[2]
    return ids.masked_fill(weights == 0, -1), weights
