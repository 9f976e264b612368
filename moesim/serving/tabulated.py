"""Parts of an iteration by look-up: priced once on a grid, interpolated from then on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from moesim.serving.one_launch import OneLaunchAttention
from moesim.serving.step_costs import COMBINE, DISPATCH, EXPERTS, StepCosts, total

Floats = NDArray[np.float64]

STAGE = "stage"
"""All that attention ranks have together."""
GROWTH = 1.13
"""Ratio of neighbouring token counts above the whole numbers that are all kept."""
DENSE_UP_TO = 16
BATCHES = tuple(int(part * 2**k) for k in range(11) for part in ((1,) if k < 1 else (1, 1.5)))
CONTEXTS = (1, *(2**k for k in range(7, 18)))
DRAFT_CONTEXT = CONTEXTS[5]
PIECES = (1, *(2**k for k in range(4, 16)))
KEYS = (0.5, *(2**k for k in range(4, 19)))


class Parts(Protocol):
    """Seconds of the parts of an iteration; arrays of one shape in, the same shape out."""

    def tokens(self, tokens: Floats) -> Floats:
        """What an attention rank does for its new tokens. [s]"""
        ...

    def stage(self, tokens: Floats) -> Floats:
        """Experts and exchanges for the tokens of all attention ranks. [s]"""
        ...

    def beside_experts(self, tokens: Floats) -> Floats:
        """What of ``tokens`` lies in layers with experts. [s]"""
        ...

    def phase(self, label: str, tokens: Floats) -> Floats:
        """One of the parts of ``stage``: dispatch, experts or combine. [s]"""
        ...

    def decode(self, sequences: Floats, context: Floats) -> Floats:
        """Attention of decoding sequences over their mean cached tokens. [s]"""
        ...

    @property
    def launch(self) -> OneLaunchAttention | None:
        """Kernel that takes prompts and decodes in one launch, where the engine runs one."""
        ...

    def beside(self, sequences: Floats, context: Floats) -> Floats:
        """What such a kernel adds to ``decode`` in an iteration that also has prompts. [s]"""
        ...

    def prefill(self, tokens: Floats, keys: Floats) -> Floats:
        """Attention of prompt pieces: new tokens, and mean keys that each attends to. [s]"""
        ...

    def head(self, rows: Floats) -> Floats:
        """Output head. [s]"""
        ...

    def draft(self, sequences: Floats) -> Floats:
        """One pass of the draft layer over the decoding sequences. [s]"""
        ...


@dataclass(frozen=True)
class ExactParts:
    """Every part priced where it is asked for.

    Attributes
    ----------
    costs : StepCosts
    query_tokens : float
        Tokens of a decoding sequence. [tokens]
    graph_tokens : int
        Most tokens of a captured graph.
    """

    costs: StepCosts
    query_tokens: float
    graph_tokens: int
    _known: dict[str, dict[float, float]] = field(default_factory=dict, compare=False, repr=False)

    def tokens(self, tokens: Floats) -> Floats:
        """As :class:`Parts`."""
        return self._of_count(
            "tokens", lambda n: total(self.costs.by_tokens(n, graph_tokens=self.graph_tokens)), tokens
        )

    def stage(self, tokens: Floats) -> Floats:
        """As :class:`Parts`."""
        return self.phase(STAGE, tokens)

    def beside_experts(self, tokens: Floats) -> Floats:
        """As :class:`Parts`."""
        graph = self.graph_tokens
        return self._of_count(
            "beside", lambda n: total(self.costs.beside_experts(n, graph_tokens=graph)), tokens
        )

    def phase(self, label: str, tokens: Floats) -> Floats:
        """As :class:`Parts`; all parts of a stage are priced together."""

        def priced(n: Floats) -> Floats | float:
            terms = self.costs.by_stage_tokens(n)
            for name in (EXPERTS, DISPATCH, COMBINE):
                part = np.zeros(len(n)) + total(term for term in terms if term.label == name)
                self._known.setdefault(name, {}).update(zip(n.tolist(), part.tolist(), strict=True))
            return total(terms)

        whole = self._of_count(STAGE, priced, tokens)
        return whole if label == STAGE else self._of_count(label, priced, tokens)

    def decode(self, sequences: Floats, context: Floats) -> Floats:
        """As :class:`Parts`."""
        return _flat(
            lambda b, c: np.where(b > 0, total(self.costs.decode(b, c, self.query_tokens)), 0.0),
            sequences,
            context,
        )

    @cached_property
    def launch(self) -> OneLaunchAttention | None:
        """As :class:`Parts`."""
        return OneLaunchAttention.of(self.costs)

    def beside(self, sequences: Floats, context: Floats) -> Floats:
        """As :class:`Parts`."""
        if self.launch is None:
            return np.zeros_like(sequences)
        return _flat(self.launch.beside_prompts, sequences, context)

    def prefill(self, tokens: Floats, keys: Floats) -> Floats:
        """As :class:`Parts`: one piece with the cache before it that gives as many keys, or several alike."""

        def priced(n: Floats, k: Floats) -> Floats:
            length = np.minimum(n, np.maximum(2 * k, 1.0))
            pieces = n / np.maximum(length, 1.0)
            before = np.maximum(k - length / 2, 0.0)
            return np.where(n > 0, total(self.costs.prefill(pieces, length, before)), 0.0)

        return _flat(priced, tokens, keys)

    def head(self, rows: Floats) -> Floats:
        """As :class:`Parts`."""
        return self._of_count("head", lambda n: np.where(n > 0, total(self.costs.head(n)), 0.0), rows)

    def draft(self, sequences: Floats) -> Floats:
        """As :class:`Parts`, at a context of a few thousand tokens."""
        return self._of_count(
            "draft", lambda n: total(self.costs.draft(n, np.full_like(n, DRAFT_CONTEXT))), sequences
        )

    def _of_count(self, part: str, price: Callable[[Floats], Floats | float], counts: Floats) -> Floats:
        """Prices that depend on one count: each count is priced once for good."""
        known = self._known.setdefault(part, {})
        values = np.asarray(counts, dtype=np.float64).ravel().tolist()
        new = sorted(set(values) - known.keys())
        if new:
            prices = np.broadcast_to(np.asarray(price(np.array(new)), dtype=np.float64), (len(new),))
            known.update(zip(new, prices.tolist(), strict=True))
        return np.array([known[value] for value in values]).reshape(counts.shape)


def _flat(price: Callable[..., Floats | float], *arrays: Floats) -> Floats:
    """``price`` on flattened arrays, back in their shape; what occurs more than once is priced once."""
    shape = np.broadcast_shapes(*(a.shape for a in arrays))
    flat = np.stack([np.broadcast_to(a, shape).ravel().astype(np.float64) for a in arrays])
    if not flat[0].any():
        return np.zeros(shape)  # nobody does this part
    # one complex number a pair: sorting those is ten times faster than sorting rows
    keys = flat[0] + 1j * flat[1] if len(flat) > 1 else flat[0]
    _, first, which = np.unique(keys, return_index=True, return_inverse=True)
    once = flat[:, first]
    prices = np.broadcast_to(np.asarray(price(*once), dtype=np.float64), once[0].shape)
    return prices[which].reshape(shape)


class TabulatedParts:
    """The same parts from tables that are filled at once.

    Parameters
    ----------
    exact : ExactParts
        Priced on the grid.
    max_tokens, num_groups : int
        Most new tokens of an attention rank in one iteration; attention ranks. [tokens], [-]
    graph_batches : sequence of int
        Batches that are asked for as they stand.
    drafts : bool
        Whether draft passes are asked for.
    """

    def __init__(
        self,
        exact: ExactParts,
        *,
        max_tokens: int,
        num_groups: int,
        graph_batches: Sequence[int],
        drafts: bool = False,
    ) -> None:
        per_decode = exact.query_tokens
        buckets = [b * per_decode for b in graph_batches]
        own = token_grid(max_tokens, buckets)
        stage = token_grid(max_tokens * num_groups, [b * num_groups for b in buckets])
        self._own, self._own_s = own, exact.tokens(own)
        self._stage, self._stage_s = stage, exact.stage(stage)
        self._exact, self._known = exact, dict[str, Floats]()
        rows = np.array(BATCHES, dtype=np.float64)
        self._rows, self._rows_s = rows, exact.head(rows)
        self._draft_s = exact.draft(rows) if drafts else np.zeros_like(rows)
        self._decode = Table2.of(exact.decode, BATCHES, CONTEXTS)
        self.launch = exact.launch
        self._beside = Table2.of(exact.beside, BATCHES, CONTEXTS) if exact.launch else None
        pieces = [p for p in PIECES if p < max_tokens] + [max_tokens]
        self._prefill = Table2.of(exact.prefill, pieces, KEYS)

    def tokens(self, tokens: Floats) -> Floats:
        """As :class:`Parts`."""
        return along(tokens, self._own, self._own_s)

    def stage(self, tokens: Floats) -> Floats:
        """As :class:`Parts`."""
        return along(tokens, self._stage, self._stage_s)

    def beside_experts(self, tokens: Floats) -> Floats:
        """As :class:`Parts`."""
        if "beside" not in self._known:
            self._known["beside"] = self._exact.beside_experts(self._own)
        return along(tokens, self._own, self._known["beside"])

    def phase(self, label: str, tokens: Floats) -> Floats:
        """As :class:`Parts`."""
        if label not in self._known:
            self._known[label] = self._exact.phase(label, self._stage)
        return along(tokens, self._stage, self._known[label])

    def decode(self, sequences: Floats, context: Floats) -> Floats:
        """As :class:`Parts`."""
        return np.where(sequences > 0, self._decode(sequences, context), 0.0)

    def beside(self, sequences: Floats, context: Floats) -> Floats:
        """As :class:`Parts`."""
        if self._beside is None:
            return np.zeros_like(sequences)
        return np.where(sequences > 0, self._beside(sequences, context), 0.0)

    def prefill(self, tokens: Floats, keys: Floats) -> Floats:
        """As :class:`Parts`."""
        return np.where(tokens > 0, self._prefill(tokens, keys), 0.0)

    def head(self, rows: Floats) -> Floats:
        """As :class:`Parts`."""
        return np.where(rows > 0, along(rows, self._rows, self._rows_s), 0.0)

    def draft(self, sequences: Floats) -> Floats:
        """As :class:`Parts`."""
        return along(sequences, self._rows, self._draft_s)


@dataclass(frozen=True)
class Table2:
    """Values on a rectangular grid, linear between its lines and beyond the last of them.

    Attributes
    ----------
    x, y : ndarray, ``(rows,)``, ``(columns,)``
        Grid lines, rising.
    values : ndarray, ``(rows, columns)``
    """

    x: Floats
    y: Floats
    values: Floats

    @classmethod
    def of(cls, price: Callable[[Floats, Floats], Floats], x: Sequence[float], y: Sequence[float]) -> Table2:
        """Grid filled with one call."""
        lines = np.array(x, dtype=np.float64), np.array(y, dtype=np.float64)
        across, along = np.meshgrid(*lines, indexing="ij")
        return cls(*lines, price(across, along))

    def __call__(self, x: Floats, y: Floats) -> Floats:
        """Value at each pair."""
        row, right = _place(x, self.x)
        column, up = _place(y, self.y)
        low = self.values[row, column] * (1 - right) + self.values[row + 1, column] * right
        high = self.values[row, column + 1] * (1 - right) + self.values[row + 1, column + 1] * right
        return np.asarray(low * (1 - up) + high * up)


def token_grid(most: float, exactly: Sequence[float] = ()) -> Floats:
    """Token counts from 1 to ``most``: whole numbers, then a geometric ladder, and those given."""
    grid = [float(n) for n in range(1, DENSE_UP_TO + 1)]
    while grid[-1] < most:
        grid.append(float(np.ceil(grid[-1] * GROWTH)))
    return np.unique([n for n in (*grid, *exactly, float(most)) if n <= most])


def along(at: Floats, grid: Floats, values: Floats) -> Floats:
    """Linear between grid points and, with the last slope, beyond."""
    index, share = _place(at, grid)
    return np.asarray(values[index] * (1 - share) + values[index + 1] * share)


def _place(at: Floats, grid: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Interval of each value and how far into it; before the first line counts as on it."""
    index = np.clip(np.searchsorted(grid, at, side="right") - 1, 0, len(grid) - 2)
    share = (at - grid[index]) / (grid[index + 1] - grid[index])
    return index, np.maximum(share, 0.0)
