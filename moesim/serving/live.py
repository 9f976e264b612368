"""A request while it is in the system."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.serving.cache import Segments

NEVER = -1


class Live:
    """State of one request between arrival and completion.

    Attributes
    ----------
    request : int
        Index in the workload.
    prompt_tokens : int
        What has to be in the KV cache before the next token: the prompt, and after a preemption also what
        was generated.
    output_tokens, generated : int
        Tokens asked for, and tokens emitted when it last joined the decodes (or left them).
    computed : int
        Of ``prompt_tokens``, those in the cache or scheduled.
    carried : bool
        Its KV comes from elsewhere (host memory, another instance): nothing to compute before it decodes.
    blocks : int
        Own blocks, as of the moment it joined the decodes.
    shared_blocks : int
        Leading blocks that it uses in the prefix cache.
    held : list of int
        Segments behind them.
    joined : int
        Decode step it first took part in; :data:`NEVER` outside the decodes.
    steps : int
        Decode steps that it took part in before it last joined.
    growth : ndarray of int64 or None
        Tokens gained after each step since it joined, from 0 on; None: one a step.
    last_token_ps : int
        When it last emitted a token. [ps]
    """

    __slots__ = (
        "blocks",
        "carried",
        "computed",
        "finish_step",
        "generated",
        "growth",
        "held",
        "joined",
        "keeps",
        "last_token_ps",
        "output_tokens",
        "prompt_tokens",
        "request",
        "segments",
        "shared_blocks",
        "steps",
    )

    def __init__(
        self, request: int, input_tokens: int, output_tokens: int, segments: Segments, keeps: int
    ) -> None:
        self.request = request
        self.prompt_tokens = input_tokens
        self.output_tokens = output_tokens
        self.segments = segments
        self.keeps = keeps
        self.generated = 0
        self.computed = 0
        self.carried = False
        self.blocks = 0
        self.shared_blocks = 0
        self.held: list[int] = []
        self.joined = NEVER
        self.steps = 0
        self.growth: NDArray[np.int64] | None = None
        self.finish_step = NEVER
        self.last_token_ps = NEVER

    def gained(self, step: int) -> int:
        """Tokens emitted since it joined and before decode step ``step``."""
        done = step - self.joined
        if self.growth is None:
            return done
        return int(self.growth[min(done, len(self.growth) - 1)])

    def emitted(self, step: int) -> int:
        """Tokens emitted before decode step ``step``, in which it takes part."""
        return self.generated + self.gained(step)
