"""Experts of each iteration as a trace has them: time beside the mean of many steps, and imbalance.

Prices by shape hold the experts of a typical batch. Here each iteration's own tokens are counted expert by
expert and the difference is added: a step whose tokens agree waits longer for its slowest rank. Runs of
decodes are counted in one pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from moesim.kernels.histogram import ExpertLoad
from moesim.serving.deployment import Deployment
from moesim.serving.measures import Series
from moesim.serving.request_rows import RequestRows
from moesim.serving.tabulated import along, token_grid
from moesim.units import PS_PER_S

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MOST_PROMPT_ROWS = 1200
"""Prompt tokens of an iteration that are counted one by one; of more, evenly spread ones stand for all."""
MOST_CHOICES = 1_200_000
"""Choices that one pass counts: longer runs are cut."""
COLUMNS = ("imbalance", "touched", "routed", "moving")
"""Over time: integrals over the routed time in picoseconds, that time, and time in which weights move."""


@dataclass(frozen=True, slots=True)
class Spread:
    """How iterations load the ranks.

    Attributes
    ----------
    load : ExpertLoad, each ``(layer, rank, step)``
    sent_s : ndarray, ``(step,)``
        Weights that are sent for this iteration alone. [s]
    """

    load: ExpertLoad
    sent_s: Floats


class Balance(Protocol):
    """Where experts are, and who serves them."""

    def spread(self, counts: Ints) -> Spread:
        """Load of every rank by the tokens of each expert, ``(step, layer, expert)``."""
        ...

    def horizon(self) -> int:
        """Iterations from now on under the present placement."""
        ...

    def done(self, counts: Ints) -> float:
        """Take note of iterations that have run, ``(step, layer, expert)``; weights then move so long. [s]"""
        ...


@dataclass(frozen=True, eq=False)
class Fixed:
    """Experts that stay where they are; the tokens of an expert go evenly over its copies.

    Attributes
    ----------
    slots : ndarray of int64, ``(layer, slot)``
        Expert of each slot, -1 for none; slots of a rank are consecutive.
    num_ranks : int
        Expert-parallel ranks.
    num_experts : int
    """

    slots: Ints
    num_ranks: int
    num_experts: int

    def spread(self, counts: Ints) -> Spread:
        """As :class:`Balance`."""
        copies, ordinal, expert = self._copies
        layer = np.arange(len(expert))[:, None]
        shared = (counts[:, layer, expert] + copies - 1 - ordinal) // copies
        by_rank = np.where(self.slots >= 0, shared, 0).reshape(*shared.shape[:2], self.num_ranks, -1)
        return Spread(loads_of(by_rank), np.zeros(len(counts)))

    def horizon(self) -> int:
        """As :class:`Balance`: for good."""
        return 2**62

    def done(self, counts: Ints) -> float:
        """As :class:`Balance`: nothing moves."""
        return 0.0

    @cached_property
    def _copies(self) -> tuple[Ints, Ints, Ints]:
        """Copies of a slot's expert, which of them it is, and the expert, each ``(layer, slot)``."""
        expert = np.maximum(self.slots, 0)
        same = (self.slots[:, :, None] == self.slots[:, None, :]) & (self.slots >= 0)[:, :, None]
        before = np.tril(np.ones(same.shape[1:], dtype=bool), -1)
        return np.maximum(same.sum(axis=2), 1), (same & before).sum(axis=2), expert


def loads_of(counts: Ints) -> ExpertLoad:
    """Condensed ``counts[step, layer, rank, slot]``, each ``(layer, rank, step)``."""
    return ExpertLoad.of(np.moveaxis(counts, 0, 2))


class Costs(Protocol):
    """Seconds of the experts of iterations.

    Attributes
    ----------
    drafts : int
        Tokens that a decoding sequence brings to a step beside its own. [tokens]
    """

    @property
    def drafts(self) -> int: ...  # noqa: D102

    def beside_mean_s(self, load: ExpertLoad, tokens: Floats) -> Floats:
        """What iterations take beside the mean of iterations of as many tokens, ``(step,)``. [s]"""
        ...


class ExpertCosts:
    """Costs of one deployment.

    Parameters
    ----------
    deployment : Deployment
    scale : float
        Factor on all times: a draw of their error. [-]
    """

    def __init__(self, deployment: Deployment, scale: float = 1.0) -> None:
        self.drafts = deployment.drafts
        self._costs, self._scale = deployment.costs, scale
        most = float(deployment.token_budget * deployment.plan.attention_dp)
        self._grid = token_grid(most)
        self._mean_s = self._costs.mean_experts_s(self._grid)

    def beside_mean_s(self, load: ExpertLoad, tokens: Floats) -> Floats:
        """As :class:`Costs`."""
        own = self._costs.experts_of(load, tokens)
        return np.asarray(self._scale * (own - along(tokens, self._grid, self._mean_s)))


class StepExperts:
    """Experts of one instance during a run.

    Parameters
    ----------
    rows : RequestRows
    costs : Costs
    balance : Balance
    """

    def __init__(self, rows: RequestRows, costs: Costs, balance: Balance) -> None:
        self.rows, self.costs, self.balance = rows, costs, balance
        self.series = Series(COLUMNS)
        self.moves, self.moved_s = 0, 0.0
        self._per_decode = 1 + costs.drafts
        self._due_s = 0.0  # weights that move before the next iteration
        self._counts: Ints = np.zeros((0, 0, 0), dtype=np.int64)
        self._imbalance: Floats = np.zeros(0)
        self._touched: Floats = np.zeros(0)

    def decodes_s(self, request: Ints, before: Callable[[int], Ints], count: int) -> Floats:
        """Seconds to add to each of up to ``count`` iterations of the same decoding sequences.

        Parameters
        ----------
        request : ndarray of int64, ``(sequence,)``
            Which.
        before : callable
            Tokens that each has emitted before each of so many iterations, ``(iteration, sequence)``.
        count : int
            Fewer are answered where the placement changes before, or to bound memory.
        """
        choices = (
            len(request) * self._per_decode * self.rows.expert_ids.shape[1] * self.rows.expert_ids.shape[2]
        )
        count = max(min(count, self.balance.horizon(), MOST_CHOICES // max(choices, 1)), 1)
        rows = self._decode_rows(request, before(count))
        extra = self._extra(self.rows.counts(rows), np.full(count, float(rows.shape[1])))
        extra[0] += self._due_s
        return extra

    def mixed_s(self, request: Ints, generated: Ints, chunks: list[tuple[int, int, int]]) -> float:
        """Seconds to add to one iteration with prompts.

        ``chunks`` holds, of each prompt, its request, new tokens, and tokens cached before.
        """
        rows = self._decode_rows(request, generated[None])
        counts = self.rows.counts(rows)
        tokens = rows.shape[1]
        new = sum(chunk for _, chunk, _ in chunks)
        if new:
            # which tokens stand for all must not depend on the order in which ranks were looked at
            chunks = sorted(chunks)
            owner = np.repeat([r for r, _, _ in chunks], [c for _, c, _ in chunks])
            place = np.concatenate([np.arange(before, before + chunk) for _, chunk, before in chunks])
            used = np.linspace(0, new - 1, min(new, MOST_PROMPT_ROWS)).round().astype(np.int64)
            found = self.rows.counts(self.rows.prompts.rows(owner[used], place[used])[None])
            counts = counts + np.rint(found * (new / len(used))).astype(np.int64)
            tokens += new
        return float(self._extra(counts, np.array([float(tokens)]))[0]) + self._due_s

    def done(self, began_ps: int, ends: list[int]) -> None:
        """Iterations just priced have run, as many as there are ends."""
        count, starts = len(ends), np.array([began_ps, *ends[:-1]])
        lengths = (np.array(ends) - starts).astype(np.float64)
        sums = (self._imbalance[:count] @ lengths, self._touched[:count] @ lengths, lengths.sum())
        self.series.add(began_ps, ends[-1], (*(float(s) for s in sums), self._due_s * PS_PER_S))
        self._due_s = moved_s = self.balance.done(self._counts[:count])
        self.moves += moved_s > 0
        self.moved_s += moved_s

    def _decode_rows(self, request: Ints, generated: Ints) -> Ints:
        """Rows of each sequence's next token and of its drafts, ``(step, token)``.

        ``generated`` holds the tokens before each step, ``(step, sequence)``.
        """
        position = generated[..., None] + np.arange(self._per_decode)
        owner = np.broadcast_to(request[:, None], position.shape)
        return self.rows.answers.rows(owner, position).reshape(len(generated), -1)

    def _extra(self, counts: Ints, tokens: Floats) -> Floats:
        spread = self.balance.spread(counts)
        per_rank = spread.load.rows
        mean = per_rank.mean(axis=1)
        ratio = np.divide(per_rank.max(axis=1), mean, out=np.ones_like(mean), where=mean > 0)
        self._counts, self._imbalance = counts, ratio.mean(axis=0)
        self._touched = (counts > 0).sum(axis=2).mean(axis=1)
        return self.costs.beside_mean_s(spread.load, tokens) + spread.sent_s


ExpertsOf = Callable[[], StepExperts]
"""Makes the experts of an instance, anew for every run."""
