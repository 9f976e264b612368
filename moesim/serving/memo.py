"""Step times by look-up: priced in tiles on a grid as a run gets there, linear in between.

A shape is brought to a few coordinates: prompt tokens, mean keys of each, decode sequences, their mean
context, and on several ranks how full they are beside the fullest. Cells are found by bisection and kept with
the values at their corners, so a look-up is a handful of multiplications in plain Python.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from moesim.serving.iterations import NOTHING, Exact, PerRank, Prefill
from moesim.serving.step_times import Floats, StepShape, stacked

Cell = tuple[int, ...]
Corners = list[float]
Point = tuple[float, ...]

TILE = (1, 1, 4, 2, 4)
"""Cells of a tile along each coordinate: what one pass prices together."""
DECODE_TILE = (8, 6, 4)
PROBES = 512
"""Most shapes whose look-up is compared with the step times."""


@dataclass(frozen=True, slots=True)
class MemoError:
    """Relative difference of look-ups from the step times, on shapes that a run asked for.

    Attributes
    ----------
    median, p90 : float
        Of its magnitude. [-]
    bias : float
        Mean with its sign. [-]
    num_shapes, num_priced : int
        Shapes compared; grid points priced.
    """

    median: float
    p90: float
    bias: float
    num_shapes: int
    num_priced: int


class Memo:
    """Memo over :class:`Exact` for one instance size; agrees with itself to the bit, alone or in a run.

    Parameters
    ----------
    exact : Exact
        Prices grid points.
    max_tokens, max_decodes, max_context : int
        Largest prompt tokens of an iteration, sequences of a rank, and tokens of a sequence. [tokens]
    """

    def __init__(self, exact: Exact, *, max_tokens: int, max_decodes: int, max_context: int) -> None:
        self.exact = exact
        self.num_ranks = exact.step_times.num_ranks
        axes = [
            _ladder(max_tokens, 16, 2),
            _ladder(max_context, 16, 1),
            _ladder(max_decodes, 1, 4),
            _ladder(max_context, 64, 1),
        ]
        if self.num_ranks > 1:
            least = 1.0 / self.num_ranks
            axes.append([least, *(share for share in (0.25, 0.5, 0.75) if share > least), 1.0])
        self._axes = tuple(axes)
        self._values: dict[Cell, float] = {}
        self._mixed = _Grid(axes, TILE)
        self._decodes = _Grid(axes[2:], DECODE_TILE)
        self._probes: dict[Cell, tuple[Prefill, PerRank, PerRank]] = {}

    def one(self, prefill: Prefill, decodes: PerRank, contexts: PerRank) -> float:
        """Seconds of one iteration."""
        if self.num_ranks > 1:
            return self._of_ranks(prefill, decodes, contexts)
        assert isinstance(decodes, int)  # one rank
        assert isinstance(contexts, int)
        context = contexts / decodes if decodes else 0.0
        asked = (prefill, decodes, contexts)
        if prefill.tokens == 0:
            return self._decode(decodes, context, asked)
        keys = float(prefill.context_products + 0.5 * prefill.squares) / float(prefill.tokens)
        return self._look_up(self._mixed, (float(prefill.tokens), keys, decodes, context), asked)

    def run(self, decodes: PerRank, contexts: NDArray[np.int64]) -> Floats:
        """Seconds of a run of decode iterations."""
        rest: tuple[float, ...] = ()
        if self.num_ranks == 1:
            assert isinstance(decodes, int)  # one rank
            most, sums = decodes, contexts
        else:
            ranks = np.asarray(decodes)
            most = int(ranks.max())
            rest = (int(ranks.sum()) / (ranks.size * max(most, 1)),)
            sums = contexts.max(axis=1)
        means = sums / most if most else np.zeros(len(sums))
        axis, inner = self._decodes.axes[1], self._decodes.inner[1]
        # contexts only grow in a run, so that each cell is one stretch of it
        first, last = (bisect_right(inner, float(means[end])) - 1 for end in (0, -1))
        cuts = np.searchsorted(means, axis[first + 1 : last + 1]).tolist()
        result = np.empty(len(means))
        for start, stop in zip([0, *cuts], [*cuts, len(means)], strict=True):
            if start == stop:
                continue
            place = self._decodes.place((most, float(means[start]), *rest))
            middle = contexts[(start + stop) // 2]
            self._probes[place] = (NOTHING, decodes, int(middle) if self.num_ranks == 1 else middle)
            corners = self._corners(self._decodes, place)
            weights = self._decodes.weights((most, means[start:stop], *rest), place)
            result[start:stop] = _blend(corners, weights)
        return result

    def error(self) -> MemoError:
        """How far look-ups are off, measured on the last shape of each cell that was used (at most 512)."""
        probes = list(self._probes.values())
        chosen = probes[:: -(-len(probes) // PROBES)] if probes else []
        if not chosen:
            return MemoError(0.0, 0.0, 0.0, 0, 0)
        priced = len(self._values)
        true = self.exact.of(stacked([self.exact.shape(*probe) for probe in chosen]))
        looked_up = np.array([self.one(*probe) for probe in chosen])
        relative = looked_up / true - 1
        sizes = np.abs(relative)
        return MemoError(
            float(np.median(sizes)),
            float(np.quantile(sizes, 0.9)),
            float(relative.mean()),
            len(chosen),
            priced,
        )

    def _of_ranks(self, prefill: Prefill, decodes: PerRank, contexts: PerRank) -> float:
        ranks, sums = np.asarray(decodes), np.asarray(contexts)
        most = int(ranks.max())
        context = int(sums.max()) / most if most else 0.0
        asked = (prefill, decodes, contexts)
        if prefill is NOTHING:
            fill = int(ranks.sum()) / (ranks.size * max(most, 1))
            return self._look_up(self._decodes, (most, context, fill), asked)
        new = np.asarray(prefill.tokens)
        each = new + ranks
        tokens = int(new.max())
        fill = int(each.sum()) / (ranks.size * max(int(each.max()), 1))
        attended = float((prefill.context_products + 0.5 * np.asarray(prefill.squares)).max())
        return self._look_up(self._mixed, (tokens, attended / tokens, most, context, fill), asked)

    def _decode(self, decodes: int, context: float, asked: tuple[Prefill, PerRank, PerRank]) -> float:
        """As :meth:`_look_up` on the grid of decodes of one rank, which is asked most: written out."""
        grid = self._decodes
        (across, along), (rows, columns) = grid.axes, grid.inner
        row, column = bisect_right(rows, decodes) - 1, bisect_right(columns, context) - 1
        place = (row, column)
        self._probes[place] = asked
        low_left, low_right, high_left, high_right = grid.cells.get(place) or self._corners(grid, place)
        up = (decodes - across[row]) / (across[row + 1] - across[row])
        right = (context - along[column]) / (along[column + 1] - along[column])
        left = low_left + (high_left - low_left) * up
        return left + (low_right + (high_right - low_right) * up - left) * right

    def _look_up(self, grid: _Grid, point: Point, asked: tuple[Prefill, PerRank, PerRank]) -> float:
        place = grid.place(point)
        # cells of decodes alone have shorter names than those with prompts
        self._probes[place] = asked
        corners = grid.cells.get(place) or self._corners(grid, place)
        return float(_blend(corners, grid.weights(point, place)))

    def _corners(self, grid: _Grid, place: Cell) -> Corners:
        """Values at the corners of a cell; where one is missing its whole tile is priced."""
        known = grid.cells.get(place)
        if known is not None:
            return known
        prefix = (0,) * (len(self._axes) - len(place))
        nodes = [(*prefix, *node) for node in product(*((i, i + 1) for i in place))]
        if any(node not in self._values for node in nodes):
            ranges = [
                range(i // width * width, min(i // width * width + width + 1, len(axis)))
                for i, width, axis in zip(place, grid.tile, grid.axes, strict=False)
            ]
            tile = [(*prefix, *node) for node in product(*ranges)]
            missing = [node for node in tile if node not in self._values]
            prices = self.exact.of(self._shapes(np.array(missing)))
            self._values.update(zip(missing, prices.tolist(), strict=True))
        corners = grid.cells[place] = [self._values[node] for node in nodes]
        return corners

    def _shapes(self, nodes: NDArray[np.int64]) -> StepShape:
        """Grid points as shapes: the first rank is the fullest, the others share the rest evenly."""
        tokens, keys, decodes, context, *fill = (
            np.asarray(axis)[nodes[:, i]][:, None] for i, axis in enumerate(self._axes)
        )
        ranks = self.num_ranks
        share = np.ones((len(nodes), ranks))
        if ranks > 1:
            share[:, 1:] = np.clip((ranks * fill[0] - 1) / (ranks - 1), 0.0, 1.0)
        tokens, decodes = tokens * share, decodes * share
        # one chunk with the cache before it that gives as many keys, or several chunks alike
        length = np.minimum(tokens, np.maximum(2 * keys, 1.0))
        chunks = np.where(length > 0, tokens / np.maximum(length, 1.0), 0.0)
        before = np.maximum(keys - length / 2, 0.0)
        return StepShape.of(
            num_decodes=decodes,
            decode_context_tokens=decodes * context,
            prefill_tokens=tokens,
            prefill_context_products=tokens * before,
            prefill_squares=tokens * length,
            num_prefills=chunks,
            tokens_per_decode=self.exact.tokens_per_decode,
        )


class _Grid:
    """Cells over some axes, by the interval of each coordinate.

    Beyond the last line of an axis its last interval answers.
    """

    __slots__ = ("axes", "cells", "inner", "tile")

    def __init__(self, axes: Sequence[list[float]], tile: Sequence[int]) -> None:
        self.axes, self.tile = tuple(axes), tuple(tile)
        self.inner = tuple(axis[:-1] for axis in axes)
        self.cells: dict[Cell, Corners] = {}

    def place(self, point: Point) -> Cell:
        """Interval of each coordinate."""
        return tuple([bisect_right(line, value) - 1 for line, value in zip(self.inner, point, strict=True)])

    def weights(self, point: Sequence[float | Floats], place: Cell) -> list[float | Floats]:
        """How far into its interval each coordinate is."""
        return [
            (value - axis[i]) / (axis[i + 1] - axis[i])
            for axis, value, i in zip(self.axes, point, place, strict=True)
        ]


def _blend(corners: Sequence[float | Floats], weights: Sequence[float | Floats]) -> float | Floats:
    """Linear along each coordinate in turn, the first coordinate first."""
    values: Sequence[float | Floats] = corners
    for weight in weights:
        half = len(values) // 2
        values = [
            low + (high - low) * weight for low, high in zip(values[:half], values[half:], strict=False)
        ]
    return values[0]


def _ladder(most: int, first: int, per_octave: int) -> list[float]:
    """0, then lines from ``first`` on, ``per_octave`` to each doubling, up to at least ``most``."""
    lines = [0.0, float(first)]
    while lines[-1] < most:
        lines.append(max(float(round(first * 2 ** ((len(lines) - 1) / per_octave))), lines[-1] + 1))
    return lines
