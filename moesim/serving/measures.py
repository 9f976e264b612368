"""What a service records: columns of requests, gaps, series over time. Nothing grows with the tokens."""

from __future__ import annotations

from collections.abc import Sequence
from math import frexp, ldexp

import numpy as np
from numpy.typing import NDArray

from moesim.serving.live import NEVER
from moesim.serving.step_times import Floats
from moesim.units import PS_PER_S

BINS_PER_OCTAVE = 256
"""A gap is known to 0.4 %; bins are found without rounding, so that the order of counting is of no matter."""
NUM_BINS = 512
"""Most bins of a series; twice as wide when they are full."""
FIRST_WIDTH_PS = PS_PER_S // 100

SERIES = ("output_tokens", "prompt_tokens", "running", "waiting", "kv_blocks", "preemptions", "steps")
"""Columns over time. ``running``, ``waiting`` and ``kv_blocks`` are integrals over the bin in picoseconds."""


class GapHistogram:
    """Times between tokens, weighted."""

    def __init__(self) -> None:
        self.weights: dict[int, int] = {}

    def add(self, gap_ps: int, weight: int) -> None:
        """Count a gap ``weight`` times."""
        mantissa, exponent = frexp(gap_ps)
        place = exponent * BINS_PER_OCTAVE + int((mantissa - 0.5) * (2 * BINS_PER_OCTAVE))
        self.weights[place] = self.weights.get(place, 0) + weight

    def add_all(self, gaps_ps: NDArray[np.int64], weight: int) -> None:
        """Count each of many gaps ``weight`` times."""
        mantissas, exponents = np.frexp(gaps_ps.astype(np.float64))
        places = exponents * BINS_PER_OCTAVE + ((mantissas - 0.5) * (2 * BINS_PER_OCTAVE)).astype(np.int64)
        for place, count in zip(*np.unique(places, return_counts=True), strict=True):
            self.weights[int(place)] = self.weights.get(int(place), 0) + int(count) * weight

    @property
    def total(self) -> int:
        """Gaps counted."""
        return sum(self.weights.values())

    def seconds(self) -> tuple[Floats, NDArray[np.int64]]:
        """Centre of each bin in use, rising, and its weight. [s]"""
        places = sorted(self.weights)
        centres = []
        for place in places:
            exponent, part = divmod(place, BINS_PER_OCTAVE)
            centres.append(ldexp(0.5 + (part + 0.5) / (2 * BINS_PER_OCTAVE), exponent) / PS_PER_S)
        return np.array(centres), np.array([self.weights[place] for place in places], dtype=np.int64)


class Series:
    """Sums in bins of time that widen as time goes on.

    Parameters
    ----------
    names : tuple of str
        Of the columns.
    """

    def __init__(self, names: tuple[str, ...] = SERIES) -> None:
        self.names, self.width_ps = names, FIRST_WIDTH_PS
        self.rows: list[list[float]] = []

    def add(self, start_ps: int, end_ps: int, values: tuple[float, ...]) -> None:
        """Spread ``values`` (in the order of the names) evenly over ``[start_ps, end_ps]``."""
        while end_ps >= self.width_ps * NUM_BINS:
            self._widen()
        first, last = start_ps // self.width_ps, end_ps // self.width_ps
        while len(self.rows) <= last:
            self.rows.append([0.0] * len(self.names))
        if first == last:
            row = self.rows[first]
            for i, value in enumerate(values):
                row[i] += value
            return
        length = end_ps - start_ps
        for place in range(first, last + 1):
            covered = min(end_ps, (place + 1) * self.width_ps) - max(start_ps, place * self.width_ps)
            share, row = covered / length, self.rows[place]
            for i, value in enumerate(values):
                row[i] += share * value

    def _widen(self) -> None:
        self.width_ps *= 2
        rows = self.rows if len(self.rows) % 2 == 0 else [*self.rows, [0.0] * len(self.names)]
        self.rows = [
            [a + b for a, b in zip(*pair, strict=True)] for pair in zip(rows[::2], rows[1::2], strict=True)
        ]

    def widened(self, width_ps: int) -> list[list[float]]:
        """Rows as if the bins had been ``width_ps`` wide, a power of two times their width."""
        while self.width_ps < width_ps:
            self._widen()
        return self.rows

    def column(self, name: str) -> Floats:
        """One series, ``(bin,)``."""
        return np.array([row[self.names.index(name)] for row in self.rows], dtype=np.float64)


class Measures:
    """Everything recorded of one run.

    Attributes
    ----------
    arrival_ps, first_scheduled_ps, first_token_ps, finish_ps : list of int, ``(request,)``
        [ps]; :data:`NEVER` until it happens.
    preemptions, cached_tokens, retries, target : list of int, ``(request,)``
        Times preempted; prompt tokens found in a prefix cache at its first start; times moved from a dead
        instance; the instance that finished it.
    gaps : GapHistogram
        Between tokens of a request, all requests together.
    series : list of Series
        Over time, one an instance.
    delivery_tokens : float
        Tokens by which the client is behind the instance.
    prompt_tokens, output_tokens, num_steps : int
        Prompt tokens computed, tokens emitted, iterations of all instances.
    """

    def __init__(self, num_requests: int, num_instances: int) -> None:
        self.arrival_ps = [NEVER] * num_requests
        self.first_scheduled_ps = [NEVER] * num_requests
        self.first_token_ps = [NEVER] * num_requests
        self.finish_ps = [NEVER] * num_requests
        self.preemptions = [0] * num_requests
        self.cached_tokens = [0] * num_requests
        self.retries = [0] * num_requests
        self.target = [NEVER] * num_requests
        self.gaps = GapHistogram()
        self.series = [Series() for _ in range(num_instances)]
        self.delivery_tokens = 0.0
        self.prompt_tokens = 0
        self.output_tokens = 0
        self.num_steps = 0

    def total(self) -> Series:
        """Series of all instances together, whose own now have bins of the same width."""
        return together(self.series)


def together(parts: Sequence[Series], width_ps: int = 0) -> Series:
    """Sum of series with the same names, whose own now have bins of its width, at least ``width_ps``."""
    result = Series(parts[0].names)
    result.width_ps = max(width_ps, *(series.width_ps for series in parts))
    for series in parts:
        rows = series.widened(result.width_ps)
        result.rows += [[0.0] * len(result.names) for _ in range(len(rows) - len(result.rows))]
        for row, own in zip(result.rows, rows, strict=False):
            row[:] = [a + b for a, b in zip(row, own, strict=True)]
    return result
