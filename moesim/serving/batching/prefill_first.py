"""Iterations hold either prompts or decodes, prompts first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moesim.serving.policies import batching_policies


@batching_policies.register("prefill_first")
@dataclass(frozen=True)
class PrefillFirst:
    """A waiting prompt that fits stops the decodes of its instance for one iteration.

    SGLang's default scheduler, vLLM's V0 scheduler without chunked prefill.
    """

    mixes: ClassVar[bool] = False

    def admits(self, num_running: int) -> bool:
        """Always: budget, sequences and blocks are the only limits."""
        return True
