"""Ends of the iterations of an instance on the integer clock."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from moesim.serving.iterations import NOTHING, Iterations, PerRank, Prefill
from moesim.serving.step_times import Floats
from moesim.units import PS_PER_S

LONGEST_RUN = 4096
FEW = 12
"""Runs up to this length are priced one by one on a single rank: cheaper than a pass of numpy."""

Chunks = Iterable[tuple[int, int, int]]
"""Rank, new tokens and tokens cached before them, of each prompt in an iteration."""


class Pricer:
    """Prices of one instance.

    Parameters
    ----------
    iterations : Iterations
    num_ranks : int
    """

    def __init__(self, iterations: Iterations, num_ranks: int) -> None:
        self.iterations, self.num_ranks = iterations, num_ranks
        self.slowdown = 1.0
        self._each_ps = 0
        self._nobody: PerRank = 0 if num_ranks == 1 else np.zeros(num_ranks, dtype=np.int64)

    def step_ps(self, chunks: Chunks, batch: tuple[PerRank, PerRank] | None, extra_s: float = 0.0) -> int:
        """Time of one iteration. [ps]

        Parameters
        ----------
        chunks
            Prompt work.
        batch : (decodes, contexts) or None
            None where nobody decodes.
        extra_s : float
            Added to it. [s]
        """
        decodes, contexts = batch or (self._nobody, self._nobody)
        return self._picoseconds(self.iterations.one(self._sums(chunks), decodes, contexts) + extra_s)

    def run_ends(
        self,
        now_ps: int,
        most: int,
        batch: tuple[PerRank, PerRank],
        until_ps: int,
        beside_s: Callable[[int], Floats] | None = None,
        sums: Callable[[int], NDArray[np.int64]] | None = None,
    ) -> list[int]:
        """Ends of up to ``most`` decode iterations, few more than are needed to reach ``until_ps``. [ps]

        ``beside_s`` says what each of the next so many takes beside its price; it may answer fewer. ``sums``
        gives contexts before each of so many; without, each sequence gains a token.
        """
        decodes, contexts = batch
        if beside_s is not None or sums is not None:
            left = self._many(now_ps, most, until_ps, self._each_ps) if self._each_ps else 1
            beside = beside_s(left) if beside_s is not None else np.zeros(left)
            count = len(beside)
            grown = sums(count) if sums is not None else _grown(decodes, contexts, count)
            return self._cumulated(now_ps, decodes, grown, beside)
        end, ends = now_ps, []
        few = FEW if self.num_ranks == 1 or not self._each_ps else 0
        for _ in range(min(most, few)):
            end += self._picoseconds(self.iterations.one(NOTHING, decodes, contexts))
            ends.append(end)
            if end >= until_ps:
                return ends
            contexts = contexts + decodes
        each_ps = (end - now_ps) // len(ends) if ends else self._each_ps
        left = self._many(end, most - len(ends), until_ps, each_ps)
        grown = _grown(decodes, contexts, max(left, 0))
        return ends + self._cumulated(end, decodes, grown) if left > 0 else ends

    def _many(self, now_ps: int, most: int, until_ps: int, each_ps: int) -> int:
        """Iterations of ``each_ps`` that one pass prices."""
        longest = max(LONGEST_RUN // self.num_ranks, FEW)
        return min(most, (until_ps - now_ps) // max(each_ps, 1) + 1, longest)

    def _cumulated(
        self, now_ps: int, decodes: PerRank, sums: NDArray[np.int64], beside_s: Floats | float = 0.0
    ) -> list[int]:
        """Ends of iterations with the given contexts, one after the other. [ps]"""
        seconds = (self.iterations.run(decodes, sums) + beside_s) * self.slowdown
        each_ps = np.maximum(np.rint(seconds * PS_PER_S).astype(np.int64), 1)
        self._each_ps = int(each_ps[-1])
        ends: list[int] = (np.cumsum(each_ps) + now_ps).tolist()
        return ends

    def _picoseconds(self, seconds: float) -> int:
        return max(round(seconds * self.slowdown * PS_PER_S), 1)

    def _sums(self, chunks: Chunks) -> Prefill:
        if self.num_ranks == 1:
            tokens = products = squares = count = 0
            for _, chunk, before in chunks:
                tokens += chunk
                products += chunk * before
                squares += chunk * chunk
                count += 1
            return Prefill(tokens, products, squares, count)
        sums: NDArray[np.int64] = np.zeros((4, self.num_ranks), dtype=np.int64)
        found = False
        for index, chunk, before in chunks:
            sums[:, index] += (chunk, chunk * before, chunk * chunk, 1)
            found = True
        return Prefill(*sums) if found else NOTHING


def _grown(decodes: PerRank, contexts: PerRank, count: int) -> NDArray[np.int64]:
    """Contexts before each of ``count`` iterations, each a token of every sequence after the one before."""
    grown = np.multiply.outer(np.arange(count, dtype=np.int64), decodes)
    return np.asarray(grown + contexts, dtype=np.int64)
