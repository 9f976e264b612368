"""One attention-DP rank, kept without ever looping over its batch.

A decode sequence changes in the same way in every decode step, so nothing of it is stored that a step would
have to change. With ``D`` counting decode steps, a sequence that joined at step ``d`` with ``n`` tokens holds
``n + D - d`` now; summed over the batch that is ``context_base + num_decodes * D``. It needs a new block
whenever ``n + D - d`` is a multiple of the block, which happens at the same phase of ``D`` for as long as it
lives: ``phases`` counts the sequences of each phase. Blocks are brought up to date (:meth:`Rank.sync`) only
when somebody asks.
"""

from __future__ import annotations

from collections import deque

from moesim.serving.cache import PrefixCache
from moesim.serving.engine import Engine
from moesim.serving.live import NEVER, Live

FOREVER = 2**62


class Rank:
    """Queue, batch and blocks of one rank.

    Attributes
    ----------
    waiting : deque of Live
        First come, first served; a preempted request goes to the front.
    running : dict of Live
        The batch, in order of admission: the last to come is the first to be preempted.
    partial : Live or None
        The one request whose prompt is computed only in part.
    num_decodes, context_base : int
        See above.
    kept : int
        Requests that its instance has not looked at yet.
    own_blocks : int
        Blocks of the batch outside the prefix cache, as of decode step ``synced``.
    """

    __slots__ = (
        "_growing",
        "_phases",
        "_synced",
        "cache",
        "context_base",
        "engine",
        "kept",
        "num_decodes",
        "own_blocks",
        "partial",
        "running",
        "waiting",
    )

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.cache = PrefixCache(engine.block_tokens)
        self.waiting: deque[Live] = deque()
        self.running: dict[Live, None] = {}
        self.partial: Live | None = None
        self.kept = 0
        self.num_decodes = 0
        self.context_base = 0
        self.own_blocks = 0
        self._phases = [0] * engine.block_tokens
        self._growing = 0
        self._synced = 0

    def busy_blocks(self, step: int) -> int:
        """Blocks that requests use before decode step ``step``: all but what could be evicted."""
        self.sync(step)
        return self.own_blocks + self.cache.blocks - self.cache.evictable

    @property
    def num_waiting(self) -> int:
        """Requests in the queue."""
        return len(self.waiting) + self.kept

    @property
    def num_running(self) -> int:
        """Requests in the batch."""
        return len(self.running)

    @property
    def available_blocks(self) -> int:
        """Blocks that are free or could be evicted."""
        return self.engine.num_blocks - self.own_blocks - self.cache.blocks + self.cache.evictable

    def sync(self, step: int) -> None:
        """Count the blocks that decode steps before ``step`` took."""
        missing = step - self._synced
        if missing <= 0:
            return
        if self._growing:
            size = len(self._phases)
            cycles, rest = divmod(missing, size)
            first = self._synced % size
            grown = cycles * self._growing + sum(self._phases[first : first + rest])
            if first + rest > size:
                grown += sum(self._phases[: first + rest - size])
            self.take(grown)
        self._synced = step

    def take(self, blocks: int) -> None:
        """Allocate; what is cached and unused gives way."""
        self.own_blocks += blocks
        over = self.own_blocks + self.cache.blocks - self.engine.num_blocks
        if over > 0:
            self.cache.evict(over)

    def need(self, step: int) -> int:
        """Blocks that the batch takes at decode step ``step``."""
        return self._phases[step % len(self._phases)]

    def safe_until(self) -> int:
        """A decode step before which the batch surely does not run out of blocks."""
        if not self._growing:
            return FOREVER
        available, size = self.available_blocks, len(self._phases)
        cycles = available // self._growing
        if cycles:
            return self._synced + cycles * size
        step = self._synced
        while available >= self._phases[step % size]:
            available -= self._phases[step % size]
            step += 1
        return step

    def _enrol(self, live: Live, step: int) -> int:
        """Count a sequence among the decodes from ``step`` on; steps until its last token."""
        self.context_base += live.prompt_tokens - step
        if not self.engine.reserve_whole:
            self._phases[(step - live.prompt_tokens) % len(self._phases)] += 1
            self._growing += 1
        return live.output_tokens - live.generated

    def _withdraw(self, live: Live, step: int) -> None:
        """No longer count it, from ``step`` on."""
        self.context_base -= live.prompt_tokens - live.joined
        if not self.engine.reserve_whole:
            self._phases[(live.joined - live.prompt_tokens) % len(self._phases)] -= 1
            self._growing -= 1

    def start(self, live: Live, chunk: int) -> int:
        """Allocate for ``chunk`` more tokens of a prompt and count them as computed; tokens cached before."""
        before = live.computed
        live.computed = before + chunk
        if live.blocks == 0 or not self.engine.reserve_whole:
            blocks = self.blocks_to(live, live.computed) - live.blocks
            self.take(blocks)
            live.blocks += blocks
        if live.segments and self.engine.prefix_caching:
            self._share(live)
        return before

    def blocks_to(self, live: Live, tokens: int) -> int:
        """Own blocks with which a request reaches ``tokens`` of its prompt."""
        if self.engine.reserve_whole:
            left = live.output_tokens - live.generated
            # carried KV already holds the place of the token that comes next
            tokens = live.prompt_tokens + left - (0 if live.carried else 1)
        return self.engine.blocks_for(tokens) - live.shared_blocks

    def join(self, live: Live, step: int) -> None:
        """A request whose prompt is computed takes part in decode steps from ``step`` on."""
        self.sync(step)
        live.joined = step
        self.num_decodes += 1
        live.finish_step = step + self._enrol(live, step) - 1

    def leave(self, live: Live, step: int) -> int:
        """Take a request out of the batch before decode step ``step``; the tokens its KV held.

        Its blocks are free (or cached) afterwards.
        """
        self.sync(step)
        kv_tokens = live.computed
        if live.joined != NEVER:
            gained = live.gained(step)
            kv_tokens = live.prompt_tokens + gained
            self.num_decodes -= 1
            self._withdraw(live, step)
            live.generated += gained
            live.steps += step - live.joined
            if not self.engine.reserve_whole:
                live.blocks = self.engine.blocks_for(kv_tokens) - live.shared_blocks
            live.joined = live.finish_step = NEVER
        if live.keeps != NEVER and live.generated == live.output_tokens:
            self._keep(live, kv_tokens)
        self.own_blocks -= live.blocks
        self.cache.release(live.held)
        live.blocks = live.shared_blocks = live.computed = 0
        self.running.pop(live, None)
        if self.partial is live:
            self.partial = None
        return kv_tokens

    def preempt(self, step: int) -> Live:
        """Send the last to come back to the front of the queue; the victim."""
        live = next(reversed(self.running))
        decoding = live.joined != NEVER
        kv_tokens = self.leave(live, step)
        if decoding and self.engine.preemption == "swap":
            live.carried = True
            live.prompt_tokens = kv_tokens
        elif decoding:
            # all tokens so far are the prompt of the second attempt
            live.prompt_tokens = kv_tokens + 1
        self.waiting.appendleft(live)
        return live

    def _share(self, live: Live) -> None:
        """Hand computed segments to the prefix cache, as long as the chain is unbroken."""
        tokens = blocks = 0
        for place, (name, count) in enumerate(self.cache.spans(live.segments)):
            tokens += live.segments[place][1]
            blocks += count
            if live.computed < tokens or live.shared_blocks >= blocks:
                if live.computed < tokens:
                    return
                continue
            turned = self.cache.offer(name, count, live.held)
            self.own_blocks -= turned
            live.blocks -= turned
            live.shared_blocks += turned
            if live.shared_blocks != blocks:
                return

    def _keep(self, live: Live, kv_tokens: int) -> None:
        """Cache the whole context of a finished request for its next turn."""
        shared = sum(count for _, count in self.cache.spans(live.segments))
        if not self.engine.prefix_caching or live.shared_blocks != shared:
            return
        turned = self.cache.offer(live.keeps, kv_tokens // self.engine.block_tokens - shared, live.held)
        live.blocks -= turned
        self.own_blocks -= turned
