"""Decoding sequences of all ranks of an instance, as one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from moesim.serving.drafting_rank import DraftingRank
from moesim.serving.iterations import PerRank
from moesim.serving.live import NEVER
from moesim.serving.rank import FOREVER, Rank

Ints = NDArray[np.int64]


class Decoders:
    """How many sequences decode, over how much context, and until when their blocks last.

    Parameters
    ----------
    ranks : sequence of Rank

    Attributes
    ----------
    total : int
        Decoding sequences of all ranks.
    """

    def __init__(self, ranks: Sequence[Rank]) -> None:
        self.ranks = ranks
        # ranks whose sequences gain more than a token a step: all of them or none
        self._drafting = [rank for rank in ranks if isinstance(rank, DraftingRank)]
        self.total = 0
        self._each = np.zeros(len(ranks), dtype=np.int64)
        self._bases = np.zeros(len(ranks), dtype=np.int64)
        self._safe = [FOREVER] * len(ranks)
        self._stale: dict[int, None] = {}

    def count(self, index: int) -> None:
        """Sequences have joined or left on a rank."""
        rank = self.ranks[index]
        self.total += rank.num_decodes - int(self._each[index])
        self._each[index] = rank.num_decodes
        self._bases[index] = rank.context_base
        self._stale[index] = None

    def touch(self, index: int) -> None:
        """Blocks of a rank have changed."""
        self._stale[index] = None

    def safe(self) -> list[int]:
        """For each rank a decode step before which it surely does not run out of blocks."""
        for index in self._stale:
            self._safe[index] = self.ranks[index].safe_until()
        self._stale.clear()
        return self._safe

    def batch(self, step: int) -> tuple[PerRank, PerRank]:
        """Sequences, and their contexts before a decode step."""
        if len(self.ranks) == 1:
            rank = self.ranks[0]
            if self._drafting:
                return rank.num_decodes, self._drafting[0].context(step)
            return rank.num_decodes, rank.context_base + rank.num_decodes * step
        each = self._each.copy()
        if self._drafting:
            return each, np.array([rank.context(step) for rank in self._drafting], dtype=np.int64)
        return each, self._bases + self._each * step

    def contexts(self, step: int) -> Callable[[int], Ints] | None:
        """Contexts before each of so many steps, ``(step,)`` or ``(step, rank)``; None: a token each more."""
        if not self._drafting:
            return None

        def before(count: int) -> Ints:
            columns = [
                rank.context(step) + np.cumsum(gains) - gains
                for rank in self._drafting
                for gains in (rank.gains(step, count),)
            ]
            return columns[0] if len(columns) == 1 else np.stack(columns, axis=1)

        return before

    def emitted(self, step: int, count: int) -> int:
        """Tokens of all sequences in ``count`` steps."""
        if not self._drafting:
            return self.total * count
        return sum(int(rank.gains(step, count).sum()) for rank in self._drafting)

    def positions(self, step: int, *, decoding: bool) -> tuple[Ints, Callable[[int], Ints]]:
        """Requests that decode, ``(sequence,)``, and the tokens that each has emitted before coming steps.

        The second is asked for a number of steps and answers ``(step, sequence)``.
        """
        lives = [live for rank in self.ranks for live in rank.running if decoding and live.joined != NEVER]
        request = np.array([live.request for live in lives], dtype=np.int64)
        since = np.array([live.generated - live.joined for live in lives], dtype=np.int64)

        def before(count: int) -> Ints:
            if not self._drafting:
                return since + np.arange(step, step + count, dtype=np.int64)[:, None]
            each = [[live.emitted(step + i) for live in lives] for i in range(count)]
            return np.array(each, dtype=np.int64).reshape(count, len(lives))

        return request, before
