"""What an inference engine allows per rank, and how it behaves: the numbers a scheduler obeys."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from moesim.serving.batching.mixed import Mixed
from moesim.serving.drafting import Drafting
from moesim.serving.policies import Batching
from moesim.serving.step_times import Floats


@dataclass(frozen=True, slots=True)
class Hold:
    """When an engine that decodes looks at new requests.

    Attributes
    ----------
    iterations : int
        After so many: of the last look, or where requests are gathered of the first that waits.
    gathers : bool
        See above.
    fill : float
        Prompt tokens over the token budget at which it looks earlier. [-]
    """

    iterations: int
    gathers: bool = False
    fill: float = float("inf")


@dataclass(frozen=True, slots=True)
class Engine:
    """Limits and habits of an engine; each limit holds on every attention-DP rank.

    Attributes
    ----------
    num_blocks, block_tokens : int
        KV cache: blocks, and tokens in each.
    max_num_batched_tokens : int
        New tokens of one iteration.
    max_num_seqs : int
        Sequences in the batch.
    chunked_prefill : bool
        A prompt may be spread over iterations; otherwise it is one piece.
    batching : Batching
        What an iteration may hold.
    async_scheduling : bool
        Host time of an iteration hides behind the device; otherwise it is added. False where the step times
        say what of it stays exposed.
    prefix_caching : bool
        Starts of prompts are kept and reused.
    reserve_whole : bool
        A request starts only when its last token would fit (no preemption); otherwise when its next
        chunk does.
    preemption : str
        What becomes of a sequence that has to give up its blocks: ``recompute`` or ``swap``.
    swap_s_per_block : float
        Time that moving one block to or from the host adds to an iteration. [s]
    frontend_s, frontend_s_per_token : float
        From the arrival of a request to the scheduler's queue: parsing, tokenisation, transport; once, and
        for each prompt token. [s]
    drafting : Drafting or None
        Speculative decoding; None: a sequence gains one token a step.
    delivery_tokens : float
        Tokens of a request that are made before its first one reaches the client: output is handled beside
        later iterations. [tokens]
    hold : Hold, optional
        None: it looks at new requests in every iteration.
    """

    num_blocks: int
    block_tokens: int = 16
    max_num_batched_tokens: int = 8192
    max_num_seqs: int = 256
    chunked_prefill: bool = True
    batching: Batching = field(default_factory=Mixed)
    async_scheduling: bool = False
    prefix_caching: bool = False
    reserve_whole: bool = False
    preemption: Literal["recompute", "swap"] = "recompute"
    swap_s_per_block: float = 0.0
    frontend_s: float = 0.0
    frontend_s_per_token: float = 0.0
    delivery_tokens: float = 0.0
    hold: Hold | None = None
    drafting: Drafting | None = None

    @property
    def tokens_per_decode(self) -> int:
        """New tokens of a decoding sequence in an iteration: its own and its drafts."""
        return 1 if self.drafting is None else 1 + self.drafting.tokens

    def iteration_s(self, device_s: Floats, host_s: Floats) -> Floats:
        """Time of an iteration from its device and host parts. [s]"""
        return np.maximum(device_s, host_s) if self.async_scheduling else device_s + host_s

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold so many tokens of one sequence."""
        return -(-tokens // self.block_tokens)

    def refusal(self, input_tokens: int, output_tokens: int) -> str:
        """Why a request could never be served, or an empty string."""
        # the last token is never stored: nothing comes after it
        kv_tokens = input_tokens + output_tokens - 1
        # a prompt that is cached to its end shares a block that it computes again
        need = self.blocks_for(kv_tokens) + int(self.prefix_caching)
        if need > self.num_blocks:
            have = self.num_blocks * self.block_tokens
            return f"needs {kv_tokens:,} tokens of KV ({need:,} blocks), a rank has room for {have:,}"
        if not self.chunked_prefill and kv_tokens > self.max_num_batched_tokens:
            # a preempted sequence comes back as a prompt of all it had
            limit = self.max_num_batched_tokens
            return f"may need a prompt of {kv_tokens:,} tokens in one piece, an iteration takes {limit:,}"
        return ""
