"""A request while it is in the system."""

from __future__ import annotations

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
    last_token_ps : int
        When it last emitted a token. [ps]
    """

    __slots__ = (
        "blocks",
        "carried",
        "computed",
        "finish_step",
        "generated",
        "held",
        "joined",
        "keeps",
        "last_token_ps",
        "output_tokens",
        "prompt_tokens",
        "request",
        "segments",
        "shared_blocks",
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
        self.finish_step = NEVER
        self.last_token_ps = NEVER
