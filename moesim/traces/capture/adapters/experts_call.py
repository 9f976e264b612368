"""Experts that are called with (hidden, indices, weights): nearly every family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moesim.errors import InputError, Problem
from moesim.traces.capture.adapters import Choices, Point, adapters, child


@adapters.register("experts_call")
@dataclass(frozen=True)
class ExpertsCall:
    """Choices are what the module ``experts`` is called with.

    True of bias-corrected, grouped, hashed and plain routers alike. The one adapter that serves blocks no
    other one claims.
    """

    def point(self, block: Any) -> Point | None:
        """Arguments of the child ``experts``."""
        experts = child(block, "experts")
        return None if experts is None else Point(experts, _read)


def _read(arguments: Sequence[Any]) -> Choices:
    if len(arguments) < 3 or arguments[1].ndim != 2 or arguments[1].is_floating_point():
        message = "experts are not called with (hidden, indices, weights); this router is not supported"
        raise InputError([Problem("model", message)])
    return arguments[1], arguments[2]
