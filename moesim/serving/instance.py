"""One instance of an engine: ranks in lockstep, one event an iteration, decodes in runs.

Between two things that change a batch (an arrival, a completion, blocks running out) every iteration is the
one before with each context a token longer. Such a run is priced in one pass and takes one event, and is cut
where something arrives in the middle of it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from functools import partial
from heapq import heappop, heappush

import numpy as np

from moesim.engine.agenda import Agenda
from moesim.serving.admission import admit
from moesim.serving.decoders import Decoders
from moesim.serving.drafting_rank import rank_of
from moesim.serving.engine import Engine
from moesim.serving.expert_steps import StepExperts
from moesim.serving.iterations import Iterations
from moesim.serving.live import NEVER, Live
from moesim.serving.measures import Measures
from moesim.serving.owner import Owner
from moesim.serving.pricing import FEW, Pricer

ENDS, ROUTES, PLANS = 0, 1, 2
"""Phases of an instant: iterations end, requests find a rank, iterations begin."""


class Instance:
    """Ranks of one engine instance.

    Parameters
    ----------
    index : int
        Its number in the service.
    engine : Engine
    iterations : Iterations
        Prices its iterations.
    num_ranks : int
        Attention-DP ranks.
    agenda, measures, owner
        Clock, records, and whom to tell.
    experts : StepExperts, optional
        Experts of each iteration; without, prices hold those of a typical one.
    """

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
        self.pricer = Pricer(iterations, num_ranks)
        self.agenda, self.measures, self.owner = agenda, measures, owner
        self.ranks = [rank_of(engine) for _ in range(num_ranks)]
        self.alive = True
        self._decoders = Decoders(self.ranks)
        self._queued: dict[int, None] = {}
        self._held: dict[Live, tuple[int, int]] = {}
        self._step = 0
        self._finishing: dict[int, dict[Live, int]] = {}
        self._finish_steps: list[int] = []
        self._fresh: dict[Live, int] = {}
        self._last_decode_ps = NEVER
        self._began_ps = NEVER
        self._ends: list[int] = []
        self._chunks: list[tuple[int, Live, int, int]] = []
        self._decoding = False
        self._token = 0
        self._asked = False
        self._num_waiting = self._num_running = self._num_blocks = 0
        self._next_look_ps = 0
        self._absent_ps = 0

    def submit(self, live: Live, rank: int) -> None:
        """Put a request at the end of the queue of a rank."""
        self.ranks[rank].waiting.append(live)
        self._queued[rank] = None
        self._num_waiting += 1
        if self._ends:
            self._absent_ps += self.agenda.now_ps - self._began_ps
        self.wake()

    def wake(self) -> None:
        """Plan at the next end of an iteration, or now when idle."""
        if not self._ends:
            self._plan_later()
            return
        now = self.agenda.now_ps
        place = bisect_left(self._ends, now)
        if place < len(self._ends) - 1:
            del self._ends[place + 1 :]
            self._end_later()

    def look(self) -> None:
        """Bring the blocks of all ranks up to the iteration at work, for a router that looks at caches."""
        started = self._step
        if self._ends and self._decoding:
            started += min(bisect_left(self._ends, self.agenda.now_ps) + 1, len(self._ends))
        for rank in self.ranks:
            rank.sync(started)

    def release(self, live: Live) -> None:
        """Blocks of a request that has been handed over are free."""
        index, blocks = self._held.pop(live, (0, 0))
        self.ranks[index].own_blocks -= blocks
        self._decoders.touch(index)
        if self.alive:
            self.wake()

    def kill(self) -> list[Live]:
        """Lose the iteration at work and all state; the requests that were here, in no special order."""
        if self._ends:
            done = bisect_right(self._ends, self.agenda.now_ps)
            if done:
                self._commit(done)
        lost: list[Live] = []
        for rank in self.ranks:
            for live in list(rank.running):
                self._evicted(live)
                decoding = live.joined != NEVER
                tokens = rank.leave(live, self._step)
                if decoding:
                    # what was generated is known to the client and becomes part of the prompt
                    live.prompt_tokens = tokens + 1
                lost.append(live)
            lost += rank.waiting
        for live in lost:
            # KV that was carried is lost, with the token that comes after it known
            live.prompt_tokens += int(live.carried)
            live.carried = False
        self.alive = False
        self.ranks = [rank_of(self.engine) for _ in self.ranks]
        self._decoders = Decoders(self.ranks)
        self._queued, self._fresh, self._held = {}, {}, {}
        self._finishing, self._finish_steps = {}, []
        self._ends, self._chunks, self._token = [], [], self._token + 1
        self._step, self._last_decode_ps = 0, NEVER
        self._num_waiting = self._num_running = self._num_blocks = 0
        self._absent_ps = 0
        return lost

    def _plan_later(self) -> None:
        if not self._asked:
            self._asked = True
            self.agenda.call(self._plan, phase=PLANS)

    def _end_later(self) -> None:
        self._token += 1
        delay = self._ends[-1] - self.agenda.now_ps
        self.agenda.call(self._ended, delay_ps=delay, phase=ENDS, value=self._token)

    def _plan(self, _: object) -> None:
        """Decide on what the next iteration, or run of decodes, holds."""
        self._asked = False
        if self._ends or not self.alive:
            return
        mixes = self.engine.batching.mixes
        moved = self._secure() if mixes else 0
        thrashed = moved > 0
        self._chunks = []
        for index in list(self._queued):
            moved += self._prefill(index, allowed=not thrashed)
        decoding = mixes or not self._chunks
        if decoding and not mixes:
            lost = self._secure()
            moved, thrashed = moved + lost, lost > 0
        self._decoding = decoding and self._decoders.total > 0
        if mixes and not self._decoding:
            # ranks are in sync with the end of this step, which nobody decodes in
            self._step += 1
        if not self._chunks and not self._decoding:
            return
        self._began_ps = self.agenda.now_ps
        swapped = moved if self.engine.preemption == "swap" else 0
        self._ends = self._priced(swapped, single=thrashed)
        self._end_later()

    def _secure(self) -> int:
        """Make room for the next decode step on every rank; blocks of the sequences that gave way."""
        step, gone = self._step, 0
        limits = self._decoders.safe()
        if min(limits) > step:
            return 0
        for index, safe in enumerate(limits):
            if safe > step:
                continue
            rank = self.ranks[index]
            rank.sync(step)
            while rank.need(step) > rank.available_blocks:
                # sequences before the first without a block have taken all there was
                rank.cache.evict(rank.cache.evictable)
                live = next(reversed(rank.running))
                gone += self._preempt(index, live)
            rank.sync(step + 1)
            self._decoders.touch(index)
        return gone

    def _preempt(self, index: int, live: Live) -> int:
        rank = self.ranks[index]
        self._evicted(live)
        before = rank.own_blocks
        decoding = live.joined != NEVER
        rank.preempt(self._step)
        self._num_waiting += 1
        self._num_running -= 1
        self._decoders.count(index)
        self._queued[index] = None
        self.measures.preemptions[live.request] += 1
        self.measures.series[self.index].add(self.agenda.now_ps, self.agenda.now_ps, (0, 0, 0, 0, 0, 1, 0))
        return max(before - rank.own_blocks, 1) if decoding else 1

    def _evicted(self, live: Live) -> None:
        """Remember when a request that stops decoding last emitted a token."""
        if live.joined != NEVER:
            live.last_token_ps = self._fresh.pop(live, self._last_decode_ps)

    def _prefill(self, index: int, *, allowed: bool) -> int:
        """Prompt work of one rank for this iteration; blocks brought back from the host."""
        rank, mixes = self.ranks[index], self.engine.batching.mixes
        rank.sync(self._step + 1 if mixes else self._step)
        admitted = admit(rank, with_decodes=mixes, from_queue=allowed)
        self._chunks += [(index, *chunk) for chunk in admitted.chunks]
        for live in admitted.carried:
            self._join(index, live)
        for live, cached in admitted.started:
            if self.measures.first_scheduled_ps[live.request] == NEVER:
                self.measures.first_scheduled_ps[live.request] = self.agenda.now_ps
                self.measures.cached_tokens[live.request] = cached
        moved = len(admitted.started) + len(admitted.carried)
        self._num_waiting -= moved
        self._num_running += moved
        if not rank.waiting and rank.partial is None:
            self._queued.pop(index, None)
        self._decoders.touch(index)
        return admitted.moved_blocks

    def _join(self, index: int, live: Live) -> None:
        live.carried = False
        self.ranks[index].join(live, self._step)
        self._decoders.count(index)
        self._fresh[live] = live.last_token_ps
        step = live.finish_step
        if step not in self._finishing:
            self._finishing[step] = {}
            heappush(self._finish_steps, step)
        self._finishing[step][live] = index

    def _priced(self, swapped: int, *, single: bool) -> list[int]:
        """Ends of the iterations that begin now. [ps]"""
        now, step = self.agenda.now_ps, self._step
        batch = self._decoders.batch(step) if self._decoding else None
        routed = None
        if self.experts is not None:
            routed = self.experts, *self._decoders.positions(step, decoding=self._decoding)
        if batch is None or self._chunks or swapped or single:
            chunks = ((index, chunk, before) for index, _, chunk, before in self._chunks)
            extra_s = swapped * self.engine.swap_s_per_block
            if routed is not None:
                experts, request, emitted = routed
                prompts = [(live.request, chunk, done) for _, live, chunk, done in self._chunks]
                extra_s += experts.mixed_s(request, emitted(1)[0], prompts)
            return [now + self.pricer.step_ps(chunks, batch, extra_s)]
        while not self._finishing_at(self._finish_steps[0]):
            del self._finishing[heappop(self._finish_steps)]
        most = min(self._finish_steps[0] + 1, *self._decoders.safe()) - step
        beside = partial(routed[0].decodes_s, *routed[1:]) if routed is not None else None
        sums, until = self._decoders.contexts(step), self.owner.next_arrival_ps()
        return self.pricer.run_ends(now, max(most, 1), batch, until, beside, sums)

    def _finishing_at(self, step: int) -> dict[Live, int]:
        """Requests that emit their last token at a decode step, without those who left the batch before."""
        planned = self._finishing[step]
        return {live: index for live, index in planned.items() if live.finish_step == step}

    def _ended(self, event: object) -> None:
        if event.value != self._token:  # type: ignore[attr-defined]  # an event of the agenda
            return
        self._commit(len(self._ends))
        self._ends = []
        if self.agenda.is_quiet and not self._asked:
            self._plan(None)
        else:
            self._plan_later()

    def _commit(self, count: int) -> None:
        """Account for the first ``count`` of the iterations at work."""
        ends, end = self._ends, self._ends[count - 1]
        measures = self.measures
        measures.num_steps += count
        done = [(i, live) for i, live, _, _ in self._chunks if live.computed == live.prompt_tokens]
        emitted = len(done)
        if self._decoding:
            emitted += self._decoders.emitted(self._step, count)
            self._gaps(ends, count, self._decoders.total)
            self._step += count
        if self.experts is not None:
            self.experts.done(self._began_ps, ends[:count])
        self._record(end, count, emitted)
        if self._decoding:
            self._finish(end)
        for index, live in done:
            self._prompt_done(index, live, end)
        measures.output_tokens += emitted
        self._chunks = []

    def _gaps(self, ends: list[int], count: int, batch: int) -> None:
        gaps = self.measures.gaps
        fresh = len(self._fresh)
        if batch > fresh:
            gaps.add(ends[0] - self._last_decode_ps, batch - fresh)
        for since in self._fresh.values():
            gaps.add(ends[0] - since, 1)
        self._fresh.clear()
        if count > FEW:
            gaps.add_all(np.diff(np.array(ends[:count])), batch)
        else:
            for before, after in zip(ends[: count - 1], ends[1:count], strict=True):
                gaps.add(after - before, batch)
        self._last_decode_ps = ends[count - 1]

    def _record(self, end: int, count: int, emitted: int) -> None:
        """Series over the iterations just done; blocks count as at their end."""
        length, series = end - self._began_ps, self.measures.series[self.index]
        if len(self.ranks) <= FEW or end >= self._next_look_ps:
            # looking at many ranks costs more than a step does: once a bin will do
            self._next_look_ps = end + series.width_ps
            self._num_blocks = sum(rank.busy_blocks(self._step) for rank in self.ranks)
        prompt = sum(chunk for _, _, chunk, _ in self._chunks)
        self.measures.prompt_tokens += prompt
        inside = (self._num_running * length, self._num_waiting * length - self._absent_ps)
        series.add(self._began_ps, end, (emitted, prompt, *inside, self._num_blocks * length, 0, count))
        self._began_ps, self._absent_ps = end, 0

    def _finish(self, end: int) -> None:
        """Requests whose last token came with the decode step just done."""
        while self._finish_steps and self._finish_steps[0] < self._step:
            step = heappop(self._finish_steps)
            for live, index in self._finishing_at(step).items():
                self.ranks[index].leave(live, self._step)
                self._decoders.count(index)
                self._done(live, end)
            del self._finishing[step]

    def _prompt_done(self, index: int, live: Live, end: int) -> None:
        """A prompt computed to its end yields a token."""
        measures, rank = self.measures, self.ranks[index]
        if live.generated == 0:
            measures.first_token_ps[live.request] = end
        else:
            measures.gaps.add(end - live.last_token_ps, 1)
        live.generated += 1
        live.last_token_ps = end
        if live.generated == live.output_tokens:
            rank.leave(live, self._step)
            self._done(live, end)
        elif self.owner.prefilled(live, self.index):
            self._held[live] = (index, live.blocks)
            rank.own_blocks += live.blocks
            live.prompt_tokens, live.carried = rank.leave(live, self._step), True
            self._num_running -= 1
        else:
            self._join(index, live)
        self._decoders.touch(index)

    def _done(self, live: Live, end: int) -> None:
        self._num_running -= 1
        self.measures.finish_ps[live.request] = end
        self.measures.target[live.request] = self.index
        self.owner.finished(live, self.index)
