"""Instances that do not look at new requests in every iteration while they decode.

Looking costs host time, and prompts one by one make many slow iterations of few tokens; so engines may poll
for requests only every so many iterations (SGLang's ``scheduler_recv_interval``), or let prompts wait until
some have gathered (TensorRT-LLM's ``batch_wait_timeout_iters`` and ``batch_wait_max_tokens_ratio``). An
instance that is idle, or has just worked on prompts, looks at once.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

from moesim.serving.instance import Instance
from moesim.serving.live import Live


class HoldingInstance(Instance):
    """An instance whose engine has a :class:`~moesim.serving.engine.Hold`; parameters as there."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        hold = self.engine.hold
        assert hold is not None  # others are plain instances
        self._hold = hold
        self._kept: list[tuple[Live, int]] = []
        self._heard = self._due = 0
        self._had_prompts = False

    def submit(self, live: Live, rank: int) -> None:
        """Keep a request until the instance looks for it; one that is decoded elsewhere goes on at once."""
        if live.carried or not self._decoders.total:
            super().submit(live, rank)
            return
        if not self._kept:
            self._due = self._next_look()
        self._kept.append((live, rank))
        self.ranks[rank].kept += 1
        self._num_waiting += 1
        if self._ends:
            self._absent_ps += self.agenda.now_ps - self._began_ps
            self._cut()

    def kill(self) -> list[Live]:
        """As :class:`Instance`; what was kept is lost with the rest."""
        kept, self._kept = [live for live, _ in self._kept], []
        self._heard, self._had_prompts = 0, False
        return super().kill() + kept

    def _plan(self, event: object) -> None:
        if not self._ends and self.alive and self._looks():
            self._heard = self._step
            for live, rank in self._kept:
                self.ranks[rank].waiting.append(live)
                self.ranks[rank].kept = 0
                self._queued[rank] = None
            self._kept = []
        super()._plan(event)
        self._cut()

    def _commit(self, count: int) -> None:
        self._had_prompts = bool(self._chunks)
        super()._commit(count)

    def _looks(self) -> bool:
        """Whether the instance looks for requests before the coming iteration."""
        if not self._decoders.total or self._had_prompts or self._step >= self._due:
            return True
        tokens = sum(live.prompt_tokens for live, _ in self._kept)
        return tokens >= self._hold.fill * self.engine.max_num_batched_tokens

    def _next_look(self) -> int:
        """Decode step before which it looks, seen from the first request that is kept."""
        step = self._step
        if self._ends and self._decoding:
            step += min(bisect_left(self._ends, self.agenda.now_ps) + 1, len(self._ends))
        every = self._hold.iterations
        if self._hold.gathers:
            return step + every
        return self._heard + -(-(step - self._heard) // every) * every

    def _cut(self) -> None:
        """End a run of decodes where the instance looks."""
        if not self._kept or not self._ends or not self._decoding:
            return
        count = max(self._due - self._step, 1)
        done = bisect_left(self._ends, self.agenda.now_ps) + 1
        if max(count, done) < len(self._ends):
            del self._ends[max(count, done) :]
            self._end_later()
