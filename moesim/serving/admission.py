"""Which prompts of a rank the next iteration works on."""

from __future__ import annotations

from dataclasses import dataclass, field

from moesim.serving.drafting_rank import first_gain
from moesim.serving.live import Live
from moesim.serving.rank import Rank


@dataclass(slots=True)
class Admitted:
    """Prompt work of one rank in one iteration.

    Attributes
    ----------
    chunks : list of (Live, int, int)
        Request, new tokens, tokens cached before them.
    started : list of (Live, int)
        Requests that came from the queue, with the tokens found in the prefix cache.
    carried : list of Live
        Requests whose KV was brought here: they decode from now on.
    moved_blocks : int
        Blocks of those.
    """

    chunks: list[tuple[Live, int, int]] = field(default_factory=list)
    started: list[tuple[Live, int]] = field(default_factory=list)
    carried: list[Live] = field(default_factory=list)
    moved_blocks: int = 0


def admit(rank: Rank, *, with_decodes: bool, from_queue: bool) -> Admitted:
    """Continue the partial prompt and start waiting requests, first come first served.

    Parameters
    ----------
    rank : Rank
        In sync with the coming iteration; changed.
    with_decodes : bool
        Its decodes ride along: they have the first claim on the token budget.
    from_queue : bool
        Whether the queue may be touched.
    """
    engine, result = rank.engine, Admitted()
    budget = engine.max_num_batched_tokens
    if with_decodes:
        budget -= rank.num_decodes * engine.tokens_per_decode
    if rank.partial is not None:
        budget -= _continue(rank, rank.partial, budget, result)
    if not from_queue or not engine.batching.admits(len(rank.running)):
        return result
    while rank.waiting and rank.partial is None and len(rank.running) < engine.max_num_seqs:
        live = rank.waiting[0]
        used = _carry(rank, live, budget, with_decodes, result) if live.carried else 0
        used = used or _start(rank, live, budget, result)
        if used == 0:
            break
        budget -= used
    return result


def _continue(rank: Rank, live: Live, budget: int, result: Admitted) -> int:
    """Next chunk of the partial prompt, as far as budget and free blocks reach; its tokens."""
    room = rank.engine.num_blocks if rank.engine.reserve_whole else rank.available_blocks
    reach = (room + live.blocks + live.shared_blocks) * rank.engine.block_tokens
    chunk = max(min(min(live.prompt_tokens, reach) - live.computed, budget), 0)
    if chunk:
        result.chunks.append((live, chunk, rank.start(live, chunk)))
        rank.partial = live if live.computed < live.prompt_tokens else None
    return chunk


def _carry(rank: Rank, live: Live, budget: int, with_decodes: bool, result: Admitted) -> int:
    """Blocks for KV that is brought here; the one token that it will decode, 0 when it has to wait."""
    # a decode of this very iteration stores what it gains
    gained = first_gain(rank.engine, live) if with_decodes else 0
    blocks = rank.blocks_to(live, live.prompt_tokens + gained)
    if budget < 1 or blocks > rank.available_blocks:
        return 0
    rank.take(blocks)
    live.blocks = blocks
    rank.running[rank.waiting.popleft()] = None
    result.carried.append(live)
    result.moved_blocks += blocks
    return 1


def _start(rank: Rank, live: Live, budget: int, result: Admitted) -> int:
    """First chunk of a waiting prompt, behind what the prefix cache has of it; its tokens."""
    if live.carried:
        return 0
    engine = rank.engine
    hit = idle = 0
    if engine.prefix_caching and live.segments:
        hit, idle = rank.cache.peek(live.segments)
        # the last token is computed in any case: its output is asked for
        hit = min(hit, (live.prompt_tokens - 1) // engine.block_tokens)
    live.shared_blocks = hit
    live.computed = hit * engine.block_tokens
    todo = live.prompt_tokens - live.computed
    chunk = min(todo, budget) if engine.chunked_prefill else todo
    fits = 0 < chunk <= budget
    if not fits or rank.blocks_to(live, live.computed + chunk) > rank.available_blocks - idle:
        live.shared_blocks = live.computed = 0
        return 0
    if hit:
        live.held = rank.cache.acquire(live.segments)
    result.started.append((live, live.computed))
    rank.running[rank.waiting.popleft()] = None
    result.chunks.append((live, chunk, rank.start(live, chunk)))
    rank.partial = live if live.computed < live.prompt_tokens else None
    return chunk
