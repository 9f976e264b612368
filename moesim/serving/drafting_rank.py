"""A rank whose sequences gain several tokens a step: growth by step instead of one token each.

What a request gains in each of its steps is known when it joins. The rank adds it to two columns over coming
decode steps, tokens and blocks, and takes the rest out again when a sequence leaves early: contexts, needs
and emitted tokens are sums over columns, and nothing loops over the batch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.serving.drafting import Drafting
from moesim.serving.engine import Engine
from moesim.serving.live import Live
from moesim.serving.rank import FOREVER, Rank

Ints = NDArray[np.int64]

FIRST_STEPS = 1000


class DraftingRank(Rank):
    """As :class:`Rank`; ``context_base`` is the context before decode step ``synced``."""

    __slots__ = ("_blocks", "_origin", "_tokens")

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._origin = 0
        self._tokens: Ints = np.zeros(FIRST_STEPS, dtype=np.int64)
        self._blocks: Ints = np.zeros(FIRST_STEPS, dtype=np.int64)

    def sync(self, step: int) -> None:
        """As :class:`Rank`."""
        if step <= self._synced:
            return
        since = slice(self._synced - self._origin, step - self._origin)
        self.context_base += int(self._tokens[since].sum())
        grown = int(self._blocks[since].sum())
        self._synced = step
        if grown:
            self.take(grown)

    def need(self, step: int) -> int:
        """As :class:`Rank`."""
        place = step - self._origin
        return int(self._blocks[place]) if place < len(self._blocks) else 0

    def safe_until(self) -> int:
        """As :class:`Rank`, exactly."""
        if not self._growing:
            return FOREVER
        needs = np.cumsum(self._blocks[self._synced - self._origin :])
        first = int(np.searchsorted(needs, self.available_blocks, side="right"))
        return self._synced + first if first < len(needs) else FOREVER

    def context(self, step: int) -> int:
        """Cached tokens of all decoding sequences before decode step ``step``."""
        low, high = sorted((step, self._synced))
        between = int(self._tokens[low - self._origin : high - self._origin].sum())
        return self.context_base + (between if step > self._synced else -between)

    def gains(self, step: int, count: int) -> Ints:
        """Tokens that the batch gains in each of ``count`` decode steps."""
        place = step - self._origin
        found = self._tokens[place : place + count]
        return np.concatenate([found, np.zeros(count - len(found), dtype=np.int64)])

    def _enrol(self, live: Live, step: int) -> int:
        drafting = self.engine.drafting
        assert drafting is not None  # that is what this rank is for
        growth = live.growth = growth_of(drafting, live)
        steps = len(growth) - 1
        self._reserve(step + steps)
        self._add(live, step, growth, 1)
        self.context_base += live.prompt_tokens + int(growth[min(self._synced - step, steps)])
        self._growing += not self.engine.reserve_whole
        return steps

    def _withdraw(self, live: Live, step: int) -> None:
        growth, done = live.growth, step - live.joined
        assert growth is not None  # it was enrolled here
        counted = min(self._synced - live.joined, len(growth) - 1)
        self.context_base -= live.prompt_tokens + int(growth[counted])
        self._growing -= not self.engine.reserve_whole
        if done < len(growth) - 1:
            self._add(live, step, growth[done:], -1)
        live.growth = None

    def _add(self, live: Live, step: int, growth: Ints, sign: int) -> None:
        """Count what a sequence gains, and the blocks that takes, from ``step`` on."""
        steps = slice(step - self._origin, step - self._origin + len(growth) - 1)
        self._tokens[steps] += sign * np.diff(growth)
        if not self.engine.reserve_whole:
            held = -(-(live.prompt_tokens + growth) // self.engine.block_tokens)
            self._blocks[steps] += sign * np.diff(held)

    def _reserve(self, last: int) -> None:
        """Room in the columns up to step ``last``; what lies far behind is dropped."""
        if last - self._origin < len(self._tokens):
            return
        # the step at work may have been counted already and is still asked for
        keep = max(self._synced - 1, self._origin)
        size = max(2 * (last - keep + 1), FIRST_STEPS)
        for name in ("_tokens", "_blocks"):
            column = getattr(self, name)[keep - self._origin :]
            wider = np.zeros(size, dtype=np.int64)
            wider[: len(column)] = column
            setattr(self, name, wider)
        self._origin = keep


def growth_of(drafting: Drafting, live: Live) -> Ints:
    """Tokens gained after each of the steps that a request has left, ``(1 + steps,)``, from 0 on."""
    left = live.output_tokens - live.generated
    gained = drafting.gained(live.request, live.output_tokens)[live.steps :]
    gained = gained - gained[0]
    steps = int(np.searchsorted(gained, left))
    return np.asarray(np.minimum(gained[: steps + 1], left))


def first_gain(engine: Engine, live: Live) -> int:
    """Tokens that a request gains in the step it joins with."""
    return 1 if engine.drafting is None else int(growth_of(engine.drafting, live)[1])


def rank_of(engine: Engine) -> Rank:
    """An empty rank of an engine."""
    return Rank(engine) if engine.drafting is None else DraftingRank(engine)
