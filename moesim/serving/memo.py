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
Point = tuple[float, float, float, float, float]

TILE = (1, 1, 4, 2, 3)
"""Cells of a tile along each coordinate: what one pass prices together."""
DECODE_TILE = (1, 1, 8, 6, 3)
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
        fill = [1.0 / self.num_ranks, 0.25, 0.5, 0.75, 1.0] if self.num_ranks > 1 else [0.0, 1.0]
        self._axes: tuple[list[float], ...] = (
            _ladder(max_tokens, 16, 2),
            _ladder(max_context, 16, 1),
            _ladder(max_decodes, 1, 4),
            _ladder(max_context, 64, 1),
            sorted({value for value in fill if value >= fill[0]}),
        )
        self._values: dict[tuple[int, ...], float] = {}
        self._cells: dict[Cell, Corners] = {}
        self._decode_cells: dict[Cell, Corners] = {}
        self._probes: dict[Cell, tuple[Prefill, PerRank, PerRank]] = {}

    def one(self, prefill: Prefill, decodes: PerRank, contexts: PerRank) -> float:
        """Seconds of one iteration."""
        if self.num_ranks == 1:
            assert isinstance(decodes, int) and isinstance(contexts, int)  # noqa: PT018 - one rank
            tokens = prefill.tokens
            assert isinstance(tokens, int)  # one rank
            if tokens == 0:
                return self._decode(decodes, contexts / decodes if decodes else 0.0, 1.0, decodes, contexts)
            keys = float(prefill.context_products + 0.5 * prefill.squares) / tokens
            context = contexts / decodes if decodes else 0.0
            return self._mixed((tokens, keys, decodes, context, 1.0), (prefill, decodes, contexts))
        return self._of_ranks(prefill, decodes, contexts)

    def run(self, decodes: PerRank, contexts: NDArray[np.int64]) -> Floats:
        """Seconds of a run of decode iterations."""
        if self.num_ranks == 1:
            assert isinstance(decodes, int)
            most, fill, sums = decodes, 1.0, contexts
        else:
            ranks = np.asarray(decodes)
            most = int(ranks.max())
            fill = int(ranks.sum()) / (ranks.size * max(most, 1))
            sums = contexts.max(axis=1)
        means = sums / most if most else np.zeros(len(sums))
        axis = self._axes[3]
        # contexts only grow in a run, so that each cell is one stretch of it
        first, last = (_place(axis, float(means[end])) for end in (0, -1))
        cuts = np.searchsorted(means, axis[first + 1 : last + 1]).tolist()
        result = np.empty(len(means))
        for start, stop in zip([0, *cuts], [*cuts, len(means)], strict=True):
            if start == stop:
                continue
            cell, corners = self._decode_cell(most, float(means[start]), fill)
            middle = contexts[(start + stop) // 2]
            self._probes[cell] = (NOTHING, decodes, int(middle) if self.num_ranks == 1 else middle)
            weights = self._weights((0.0, 0.0, most, means[start:stop], fill), cell)
            result[start:stop] = _blend(corners, weights[2:])
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
        if prefill is NOTHING:
            fill = int(ranks.sum()) / (ranks.size * max(most, 1))
            return self._decode(most, context, fill, decodes, contexts)
        new = np.asarray(prefill.tokens)
        each = new + ranks
        tokens = int(new.max())
        fill = int(each.sum()) / (ranks.size * max(int(each.max()), 1))
        attended = float((prefill.context_products + 0.5 * np.asarray(prefill.squares)).max())
        return self._mixed((tokens, attended / tokens, most, context, fill), (prefill, decodes, contexts))

    def _decode(self, most: int, context: float, fill: float, decodes: PerRank, contexts: PerRank) -> float:
        cell, corners = self._decode_cell(most, context, fill)
        self._probes[cell] = (NOTHING, decodes, contexts)
        return float(_blend(corners, self._weights((0.0, 0.0, most, context, fill), cell)[2:]))

    def _decode_cell(self, most: int, context: float, fill: float) -> tuple[Cell, Corners]:
        axes = self._axes
        cell: Cell = (0, 0, _place(axes[2], most), _place(axes[3], context), _place(axes[4], fill))
        corners = self._decode_cells.get(cell)
        if corners is None:
            nodes = list(product((0,), (0,), *((i, i + 1) for i in cell[2:])))
            self._fill(nodes, cell, DECODE_TILE)
            corners = self._decode_cells[cell] = [self._values[node] for node in nodes]
        return cell, corners

    def _mixed(self, point: Point, asked: tuple[Prefill, PerRank, PerRank]) -> float:
        cell = tuple(_place(axis, value) for axis, value in zip(self._axes, point, strict=True))
        corners = self._cells.get(cell)
        if corners is None:
            nodes = list(product(*((i, i + 1) for i in cell)))
            self._fill(nodes, cell, TILE)
            corners = self._cells[cell] = [self._values[node] for node in nodes]
        # kept apart from the cells of decodes alone
        self._probes[(cell[0] + 1, *cell[1:])] = asked
        return float(_blend(corners, self._weights(point, cell)))

    def _weights(self, point: Sequence[float | Floats], cell: Cell) -> list[float | Floats]:
        return [
            (value - axis[i]) / (axis[i + 1] - axis[i])
            for axis, value, i in zip(self._axes, point, cell, strict=True)
        ]

    def _fill(self, wanted: list[tuple[int, ...]], cell: Cell, tile: Sequence[int]) -> None:
        """Price the nodes of a cell, and with them those of its tile."""
        if all(node in self._values for node in wanted):
            return
        ranges = []
        for axis, (i, width) in enumerate(zip(cell, tile, strict=True)):
            if wanted[0][axis] == wanted[-1][axis]:
                ranges.append(range(wanted[0][axis], wanted[0][axis] + 1))
                continue
            first = i // width * width
            ranges.append(range(first, min(first + width + 1, len(self._axes[axis]))))
        nodes = [node for node in product(*ranges) if node not in self._values]
        shapes = self._shapes(np.array(nodes))
        self._values.update(zip(nodes, self.exact.of(shapes).tolist(), strict=True))

    def _shapes(self, nodes: NDArray[np.int64]) -> StepShape:
        """Grid points as shapes: the first rank is the fullest, the others share the rest evenly."""
        tokens, keys, decodes, context, fill = (
            np.asarray(axis)[nodes[:, i]][:, None] for i, axis in enumerate(self._axes)
        )
        ranks = self.num_ranks
        share = np.ones((len(nodes), ranks))
        if ranks > 1:
            share[:, 1:] = np.clip((ranks * fill - 1) / (ranks - 1), 0.0, 1.0)
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


def _place(axis: list[float], value: float) -> int:
    """Interval of a value; beyond the last line the last interval answers."""
    return min(bisect_right(axis, value) - 1, len(axis) - 2)


def _blend(corners: Sequence[float | Floats], weights: Sequence[float | Floats]) -> float | Floats:
    """Linear along each coordinate in turn, the first coordinate first."""
    values = list(corners)
    for weight in weights:
        half = len(values) // 2
        values = [low + (high - low) * weight for low, high in zip(values[:half], values[half:], strict=True)]
    return values[0]


def _ladder(most: int, first: int, per_octave: int) -> list[float]:
    """0, then lines from ``first`` on, ``per_octave`` to each doubling, up to at least ``most``."""
    lines = [0.0, float(first)]
    while lines[-1] < most:
        lines.append(max(float(round(first * 2 ** ((len(lines) - 1) / per_octave))), lines[-1] + 1))
    return lines
