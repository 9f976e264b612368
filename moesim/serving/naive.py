"""The same instance as a loop over its requests: the oracle of :class:`moesim.serving.instance.Instance`.

Every iteration touches every sequence: its context, its blocks, its token. Quadratic and obvious; for tests
and small loads. It shares with the lazy instance the queue's rules that are not lazy (the prefix cache), and
none of its sums, phases, buckets or runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moesim.engine.agenda import Agenda
from moesim.serving.cache import PrefixCache
from moesim.serving.engine import Engine
from moesim.serving.expert_steps import StepExperts
from moesim.serving.instance import ENDS, PLANS
from moesim.serving.iterations import Iterations, PerRank
from moesim.serving.live import NEVER, Live
from moesim.serving.measures import Measures
from moesim.serving.owner import Owner
from moesim.serving.pricing import Pricer


@dataclass(slots=True)
class Sequence:
    """A request in the batch.

    Attributes
    ----------
    kv_tokens, blocks : int
        Tokens in its cache, and own blocks that hold them.
    decoding : bool
        Its prompt is complete.
    """

    live: Live
    kv_tokens: int
    blocks: int
    decoding: bool


@dataclass
class NaiveRank:
    """Queue, batch and blocks of one rank, sequence by sequence."""

    engine: Engine
    waiting: list[Live] = field(default_factory=list)
    batch: list[Sequence] = field(default_factory=list)
    held: dict[Live, int] = field(default_factory=dict)
    cache: PrefixCache = field(init=False)

    def __post_init__(self) -> None:
        self.cache = PrefixCache(self.engine.block_tokens)

    @property
    def num_waiting(self) -> int:
        """Requests in the queue."""
        return len(self.waiting)

    @property
    def num_running(self) -> int:
        """Requests in the batch."""
        return len(self.batch)

    @property
    def available(self) -> int:
        """Blocks that are free or could be evicted."""
        own = sum(sequence.blocks for sequence in self.batch) + sum(self.held.values())
        return self.engine.num_blocks - own - self.cache.blocks + self.cache.evictable

    def grow(self, sequence: Sequence, blocks: int) -> None:
        """Allocate, evicting what is cached and unused."""
        sequence.blocks += blocks
        free = self.available - self.cache.evictable
        if free < 0:
            self.cache.evict(-free)

    def drop(self, sequence: Sequence) -> None:
        """Take a sequence out of the batch and give its blocks back; its whole context may stay cached."""
        live, cached = sequence.live, self.cache
        blocks = sum(count for _, count in cached.spans(live.segments))
        complete = live.generated == live.output_tokens and live.keeps != NEVER
        if complete and self.engine.prefix_caching and live.shared_blocks == blocks:
            whole = sequence.kv_tokens // self.engine.block_tokens
            sequence.blocks -= cached.offer(live.keeps, whole - blocks, live.held)
        self.batch.remove(sequence)
        cached.release(live.held)
        live.shared_blocks = 0


class NaiveInstance:
    """As :class:`moesim.serving.instance.Instance`, request by request and token by token."""

    def __init__(
        self,
        index: int,
        engine: Engine,
        iterations: Iterations,
        num_ranks: int,
        agenda: Agenda,
        measures: Measures,
        owner: Owner,
        experts: StepExperts | None = None,
    ) -> None:
        self.index, self.engine, self.experts = index, engine, experts
        self.agenda, self.measures, self.owner = agenda, measures, owner
        self.pricer = Pricer(iterations, num_ranks)
        self.ranks = [NaiveRank(engine) for _ in range(num_ranks)]
        self.alive = True
        self._began_ps = NEVER
        self._busy = self._asked = False
        self._token = 0
        self._chunks: list[tuple[int, Sequence, int, int]] = []
        self._decoders: list[tuple[int, Sequence]] = []
        self._gained: dict[int, NDArray[np.int64]] = {}

    def submit(self, live: Live, rank: int) -> None:
        """Put a request at the end of the queue of a rank."""
        self.ranks[rank].waiting.append(live)
        self.wake()

    def wake(self) -> None:
        """Plan now when idle; a busy instance plans at the end of its iteration anyway."""
        if not self._busy and not self._asked:
            self._asked = True
            self.agenda.call(self._plan, phase=PLANS)

    def look(self) -> None:
        """Nothing is ever out of date."""

    def release(self, live: Live) -> None:
        """Blocks of a request that has been handed over are free."""
        for rank in self.ranks:
            rank.held.pop(live, None)
        if self.alive:
            self.wake()

    def kill(self) -> list[Live]:
        """Lose the iteration at work and all state; the requests that were here."""
        lost = [live for rank in self.ranks for live in rank.waiting]
        for live in lost:
            live.prompt_tokens += int(live.carried)
        for rank in self.ranks:
            for sequence in list(rank.batch):
                live = sequence.live
                if sequence.decoding:
                    live.prompt_tokens = self._prompt_again(live)
                rank.drop(sequence)
                lost.append(live)
        for live in lost:
            live.carried, live.computed = False, 0
        self.ranks = [NaiveRank(self.engine) for _ in self.ranks]
        self.alive = self._busy = False
        self._token += 1
        self._chunks, self._decoders = [], []
        return lost

    def _prompt_again(self, live: Live) -> int:
        return self.owner.input_tokens(live.request) + live.generated

    def _plan(self, _: object) -> None:
        self._asked = False
        if self._busy or not self.alive:
            return
        mixes = self.engine.batching.mixes
        self._chunks, self._decoders = [], []
        moved = self._take_decodes() if mixes else 0
        thrashed = moved > 0
        for index, rank in enumerate(self.ranks):
            moved += self._prompts(index, rank, mixes=mixes, allowed=not thrashed)
        if not mixes and not self._chunks:
            moved += self._take_decodes()
        if not self._chunks and not self._decoders:
            return
        self._busy, self._began_ps = True, self.agenda.now_ps
        extra_s = moved * self.engine.swap_s_per_block if self.engine.preemption == "swap" else 0.0
        if self.experts is not None:
            extra_s += self._experts_s(self.experts)
        chunks = [(index, tokens, before) for index, _, tokens, before in self._chunks]
        batch = self._sums() if self._decoders else None
        self._token += 1
        self.agenda.call(
            self._ended, delay_ps=self.pricer.step_ps(chunks, batch, extra_s), phase=ENDS, value=self._token
        )

    def _experts_s(self, experts: StepExperts) -> float:
        decoding = [(sequence.live.request, sequence.live.generated) for _, sequence in self._decoders]
        table = np.array(decoding, dtype=np.int64).reshape(-1, 2)
        prompts = [(s.live.request, tokens, before) for _, s, tokens, before in self._chunks]
        return experts.mixed_s(table[:, 0], table[:, 1], prompts)

    def _sums(self) -> tuple[PerRank, PerRank]:
        decodes = np.zeros(len(self.ranks), dtype=np.int64)
        contexts = np.zeros(len(self.ranks), dtype=np.int64)
        for index, sequence in self._decoders:
            decodes[index] += 1
            contexts[index] += sequence.kv_tokens
        return (int(decodes[0]), int(contexts[0])) if len(self.ranks) == 1 else (decodes, contexts)

    def _take_decodes(self) -> int:
        """A place for the next token of every decoding sequence, in order; blocks that moved to the host."""
        moved = 0
        for index, rank in enumerate(self.ranks):
            place = 0
            while place < len(rank.batch):
                sequence = rank.batch[place]
                if sequence.decoding:
                    need = self._more(sequence, sequence.kv_tokens + self._gain(sequence.live))
                    if need > rank.available:
                        moved += self._preempt(rank, rank.batch[-1])
                        continue
                    rank.grow(sequence, need)
                    self._decoders.append((index, sequence))
                place += 1
            inside = {id(sequence) for sequence in rank.batch}
            self._decoders = [(i, s) for i, s in self._decoders if i != index or id(s) in inside]
        return moved

    def _more(self, sequence: Sequence, tokens: int) -> int:
        """Further blocks with which a sequence holds so many tokens."""
        if self.engine.reserve_whole:
            return 0
        return max(self.engine.blocks_for(tokens) - sequence.live.shared_blocks - sequence.blocks, 0)

    def _preempt(self, rank: NaiveRank, sequence: Sequence) -> int:
        live = sequence.live
        blocks = max(self.engine.blocks_for(sequence.kv_tokens) - live.shared_blocks, 1)
        rank.drop(sequence)
        self.measures.preemptions[live.request] += 1
        live.computed = 0
        if sequence.decoding and self.engine.preemption == "swap":
            live.carried, live.prompt_tokens = True, sequence.kv_tokens
        elif sequence.decoding:
            live.prompt_tokens = self._prompt_again(live)
        rank.waiting.insert(0, live)
        return blocks if sequence.decoding else 1

    def _prompts(self, index: int, rank: NaiveRank, *, mixes: bool, allowed: bool) -> int:
        """Prompt work of one rank; blocks that were brought back from the host."""
        engine = self.engine
        each = engine.tokens_per_decode
        budget = engine.max_num_batched_tokens - each * sum(s.decoding for s in rank.batch if mixes)
        for sequence in rank.batch:
            live = sequence.live
            if not sequence.decoding:
                room = engine.num_blocks if engine.reserve_whole else rank.available
                reach = (room + sequence.blocks + live.shared_blocks) * engine.block_tokens
                chunk = min(budget, min(live.prompt_tokens, reach) - live.computed)
                if chunk > 0:
                    self._schedule(index, rank, sequence, chunk)
                    budget -= chunk
        moved = 0
        open_ = allowed and engine.batching.admits(len(rank.batch))
        while open_ and rank.waiting and len(rank.batch) < engine.max_num_seqs:
            if any(not s.decoding and s.live.computed < s.live.prompt_tokens for s in rank.batch):
                break
            if rank.waiting[0].carried:
                blocks = self._bring(index, rank, budget, mixes=mixes)
                moved, used = moved + blocks, int(blocks > 0)
            else:
                used = self._start(index, rank, budget)
            if not used:
                break
            budget -= used
        return moved

    def _bring(self, index: int, rank: NaiveRank, budget: int, *, mixes: bool) -> int:
        """Take in a request whose KV exists elsewhere; its blocks, 0 when it has to wait."""
        live = rank.waiting[0]
        blocks = self._whole(live)
        if not self.engine.reserve_whole:
            blocks = self.engine.blocks_for(live.prompt_tokens + mixes * self._gain(live))
        if budget < 1 or blocks > rank.available:
            return 0
        sequence = Sequence(rank.waiting.pop(0), live.prompt_tokens, 0, decoding=True)
        rank.batch.append(sequence)
        rank.grow(sequence, blocks)
        live.carried = False
        if mixes:
            self._decoders.append((index, sequence))
        return blocks

    def _start(self, index: int, rank: NaiveRank, budget: int) -> int:
        """Start the first of the queue; its tokens, 0 when it has to wait."""
        engine, live = self.engine, rank.waiting[0]
        hit = idle = 0
        if engine.prefix_caching:
            hit, idle = rank.cache.peek(live.segments)
            hit = min(hit, (live.prompt_tokens - 1) // engine.block_tokens)
        todo = live.prompt_tokens - hit * engine.block_tokens
        chunk = min(todo, budget) if engine.chunked_prefill else todo
        blocks = self._whole(live)
        if not engine.reserve_whole:
            blocks = engine.blocks_for(hit * engine.block_tokens + chunk)
        if not 0 < chunk <= budget or blocks - hit > rank.available - idle:
            return 0
        live.held = rank.cache.acquire(live.segments) if hit else []
        live.shared_blocks, live.computed = hit, hit * engine.block_tokens
        if self.measures.first_scheduled_ps[live.request] == NEVER:
            self.measures.first_scheduled_ps[live.request] = self.agenda.now_ps
            self.measures.cached_tokens[live.request] = live.computed
        sequence = Sequence(rank.waiting.pop(0), 0, 0, decoding=False)
        rank.batch.append(sequence)
        rank.grow(sequence, blocks - hit if engine.reserve_whole else 0)
        self._schedule(index, rank, sequence, chunk)
        return chunk

    def _whole(self, live: Live) -> int:
        """Blocks of all tokens that a request will ever hold."""
        return self.engine.blocks_for(self.owner.input_tokens(live.request) + live.output_tokens - 1)

    def _schedule(self, index: int, rank: NaiveRank, sequence: Sequence, chunk: int) -> None:
        live, before = sequence.live, sequence.live.computed
        rank.grow(sequence, self._more(sequence, before + chunk))
        live.computed = sequence.kv_tokens = before + chunk
        self._chunks.append((index, sequence, chunk, before))
        tokens = blocks = 0
        for (name, count), (_, length) in zip(rank.cache.spans(live.segments), live.segments, strict=True):
            tokens, blocks = tokens + length, blocks + count
            if live.computed < tokens or not self.engine.prefix_caching:
                break
            if live.shared_blocks < blocks:
                turned = rank.cache.offer(name, count, live.held)
                sequence.blocks -= turned
                live.shared_blocks += turned
                if live.shared_blocks != blocks:
                    break

    def _ended(self, event: object) -> None:
        if event.value != self._token:  # type: ignore[attr-defined]  # an event of the agenda
            return
        now, self._busy = self.agenda.now_ps, False
        self.measures.num_steps += 1
        if self.experts is not None:
            self.experts.done(self._began_ps, [now])
        for index, sequence in self._decoders:
            tokens = self._gain(sequence.live)
            sequence.kv_tokens += tokens
            sequence.live.steps += 1
            self._emit(index, sequence, now, tokens)
        for index, sequence, chunk, _ in self._chunks:
            self.measures.prompt_tokens += chunk
            if sequence.live.computed == sequence.live.prompt_tokens:
                sequence.decoding = True
                self._emit(index, sequence, now)
        self.wake()

    def _gain(self, live: Live) -> int:
        """Tokens that a sequence gains in its next step."""
        drafting, left = self.engine.drafting, live.output_tokens - live.generated
        if drafting is None:
            return 1
        if live.request not in self._gained:
            self._gained[live.request] = drafting.gained(live.request, live.output_tokens)
        gained = self._gained[live.request]
        return min(int(gained[live.steps + 1] - gained[live.steps]), left)

    def _emit(self, index: int, sequence: Sequence, now: int, tokens: int = 1) -> None:
        """What one sequence gains."""
        live, measures = sequence.live, self.measures
        measures.output_tokens += tokens
        if live.generated == 0:
            measures.first_token_ps[live.request] = now
        else:
            measures.gaps.add(now - live.last_token_ps, 1)
        live.generated += tokens
        live.last_token_ps = now
        if live.generated == live.output_tokens:
            self.ranks[index].drop(sequence)
            measures.finish_ps[live.request] = now
            measures.target[live.request] = self.index
            self.owner.finished(live, self.index)
        elif self.owner.prefilled(live, self.index):
            self.ranks[index].held[live] = sequence.blocks
            self.ranks[index].drop(sequence)
            live.carried, live.prompt_tokens = True, sequence.kv_tokens
