"""Doge: experts are rows of an embedding, found by product keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moesim.traces.capture.adapters import Point, adapters, child, class_name


@adapters.register("doge")
@dataclass(frozen=True)
class Doge:
    """Choices are the rows that are looked up; the weights are never seen by a module."""

    def point(self, block: Any) -> Point | None:
        """Arguments of the look-up of the first projection."""
        if class_name(block) != "DogeCDMoE":
            return None
        return Point(child(block, "down_embed"), lambda arguments: (arguments[0], None))
