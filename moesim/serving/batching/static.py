"""A batch is filled once and runs until its last sequence has finished."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moesim.serving.policies import batching_policies


@batching_policies.register("static")
@dataclass(frozen=True)
class Static:
    """No continuous batching: what engines did before it, and the baseline of papers on it."""

    mixes: ClassVar[bool] = False

    def admits(self, num_running: int) -> bool:
        """Only into an empty batch."""
        return num_running == 0
