"""LLEP: what does not fit the budget of its rank is served elsewhere, with the weights sent there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from moesim.placement.placed import Floats, Placement, serving
from moesim.placement.split_registry import Batch, Served, splits


@splits.register("llep")
@dataclass(frozen=True)
class Llep:
    """Least-loaded expert parallelism: excess tokens of a batch spill to the least loaded ranks.

    Parameters
    ----------
    imbalance_ratio : float
        Largest over mean rank load below which nothing spills. [-]
    budget_ratio : float
        Tokens that a rank may be given, over the mean rank load. [-]
    min_tokens : int
        Smallest piece that is worth sending weights for. [tokens]

    References
    ----------
    .. [1] "Least-Loaded Expert Parallelism," arXiv:2601.17111, algorithm of section 3.
    """

    imbalance_ratio: Annotated[float, Field(ge=1)] = 1.3
    budget_ratio: Annotated[float, Field(gt=0)] = 1.0
    min_tokens: Annotated[int, Field(ge=1)] = 1_024

    def serve(self, batch: Batch, placement: Placement, rng: np.random.Generator) -> Served:
        """Deterministic; transient copies are extra slots of the returned placement."""
        pieces = [self.layer(tokens, placement.rank_share[layer]) for layer, tokens in enumerate(batch.total)]
        shares = np.stack([piece / np.maximum(piece.sum(axis=1, keepdims=True), 1) for piece in pieces])
        idle = batch.total <= 0
        shares[idle] = placement.rank_share[idle]
        served = serving(placement.resident | (shares > 0), shares)
        return Served(served, served.slot_share[None])

    def layer(self, tokens: Floats, native: Floats) -> Floats:
        """Tokens of each expert on each rank, ``(experts, ranks)``. [tokens]

        Parameters
        ----------
        tokens : ndarray of float64, ``(experts,)``
            Of the batch. [tokens]
        native : ndarray of float64, ``(experts, ranks)``
            Share of each expert that its ranks serve without spilling. [-]
        """
        planned = tokens[:, None] * native
        pending = planned.sum(axis=0)
        mean = float(pending.mean())
        if mean <= 0 or pending.max() < self.imbalance_ratio * mean:
            return planned
        ledger = _Ledger(np.zeros_like(planned), np.zeros(pending.size), pending, self.budget_ratio * mean)
        for expert in np.argsort(-tokens, kind="stable").tolist():
            for home in np.flatnonzero(planned[expert]).tolist():
                amount = float(planned[expert, home])
                ledger.pending[home] -= amount
                kept = min(amount, ledger.room(home))
                if kept < amount:
                    kept += self._spilled(ledger, expert, home, amount - kept, kept)
                ledger.give(expert, home, kept)
        return ledger.given

    def _spilled(self, ledger: _Ledger, expert: int, home: int, rest: float, kept: float) -> float:
        """Give the excess of an expert to other ranks; what stays at home after all. [tokens]"""
        for rank in np.argsort(ledger.load + ledger.pending, kind="stable").tolist():
            piece = min(rest, ledger.room(rank))
            if rank == home or piece <= 0 or (piece < self.min_tokens and rest > piece):
                continue
            ledger.give(expert, rank, piece)
            rest -= piece
        if rest <= 0:
            return 0.0
        # nobody has room for a piece worth sending: the least loaded takes it, home included
        totals = ledger.load + ledger.pending
        totals[home] += kept
        least = int(totals.argmin())
        if least == home:
            return rest
        ledger.give(expert, least, rest)
        return 0.0


@dataclass(frozen=True, eq=False)
class _Ledger:
    """Tokens given to ranks, ``(experts, ranks)`` and ``(ranks,)``, and what they still wait for."""

    given: Floats
    load: Floats
    pending: Floats
    budget: float

    def room(self, rank: int) -> float:
        return max(self.budget - float(self.load[rank]) - float(self.pending[rank]), 0.0)

    def give(self, expert: int, rank: int, tokens: float) -> None:
        self.given[expert, rank] += tokens
        self.load[rank] += tokens
