"""Prompts and decodes share an iteration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moesim.serving.policies import batching_policies


@batching_policies.register("mixed")
@dataclass(frozen=True)
class Mixed:
    """Decodes of all running sequences first, what is left of the token budget goes to prompts.

    vLLM's V1 scheduler, TensorRT-LLM's in-flight batching, SGLang with mixed chunks.
    """

    mixes: ClassVar[bool] = True

    def admits(self, num_running: int) -> bool:
        """Always: budget, sequences and blocks are the only limits."""
        return True
