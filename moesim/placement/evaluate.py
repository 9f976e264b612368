"""The one judge of placements: tokens per rank, and what follows from them.

A layer is as slow as its most loaded rank and layers run one after another, so the objective of
every method is the largest rank load, summed over layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moesim.errors import InputError
from moesim.placement.placed import Placement

ROUNDING = 1e-10
"""Relative difference below which a gap is rounding."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A placement under one traffic.

    Attributes
    ----------
    rank_loads : ndarray of float64, ``(..., layers, ranks)``
        Tokens of each rank; leading axis of batches if the traffic had one. [tokens]
    speeds : ndarray of float64, ``(ranks,)``, optional
        Speed of each rank over the mean speed; None where ranks are alike. [-]
    """

    rank_loads: NDArray[np.float64]
    speeds: NDArray[np.float64] | None = None

    @property
    def largest(self) -> NDArray[np.float64]:
        """Load of the rank that is done last, as a rank of mean speed sees it, ``(..., layers)``. [tokens]"""
        loads = self.rank_loads if self.speeds is None else self.rank_loads / self.speeds
        return np.asarray(loads.max(axis=-1), np.float64)

    @property
    def objective(self) -> float:
        """Largest rank load summed over layers, averaged over batches. [tokens]"""
        return float(self.largest.sum(axis=-1).mean())

    @property
    def imbalance(self) -> NDArray[np.float64]:
        """Largest over mean rank load, ``(..., layers)``; 1 for a layer without tokens. [-]

        With speeds: time of the rank that is done last over the time if all were done together.
        """
        mean: NDArray[np.float64] = self.rank_loads.mean(axis=-1)
        return np.divide(self.largest, mean, out=np.ones_like(mean), where=mean > 0)

    @property
    def imbalance_ratio(self) -> float:
        """Mean of :attr:`imbalance` over layers and batches. [-]"""
        return float(self.imbalance.mean())


def evaluate(loads: ArrayLike, placement: Placement, speeds: NDArray[np.float64] | None = None) -> Evaluation:
    """Evaluation of a placement under ``loads``, ``([batches,] layers, experts)``. [tokens]

    ``speeds``, ``(ranks,)``, are relative to their mean; ranks are alike without them.
    """
    return Evaluation(rank_loads(loads, placement), speeds)


def rank_loads(loads: ArrayLike, placement: Placement) -> NDArray[np.float64]:
    """Tokens that each rank serves.

    Parameters
    ----------
    loads : ndarray, ``(layers, experts)`` or ``(batches, layers, experts)``
        Tokens of each expert. [tokens]
    placement : Placement
        Must have the same layers and experts.

    Returns
    -------
    ndarray of float64, ``(layers, ranks)`` or ``(batches, layers, ranks)``
        Sums over ranks to the tokens of the layer. [tokens]

    Raises
    ------
    InputError
        Shapes that differ.
    """
    tokens = np.asarray(loads, np.float64)
    wanted = (placement.num_layers, placement.num_experts)
    if tokens.ndim not in (2, 3) or tokens.shape[-2:] != wanted:
        raise InputError.at(
            "loads", tokens.shape, f"([batches,] layers, experts) = ([batches,] {wanted[0]}, {wanted[1]})"
        )
    by_layer = np.moveaxis(np.atleast_3d(tokens.T).T, 0, 1)
    served = np.moveaxis(np.matmul(by_layer, placement.rank_share), 1, 0)
    return np.asarray(served[0] if tokens.ndim == 2 else served, np.float64)


def gap_fraction(objective: float, bound: float) -> float:
    """``(objective - bound) / bound``: how much better any placement could at most be. [-]

    Zero without tokens. A negative value beyond rounding would mean a wrong bound and is not hidden.
    """
    if bound <= 0:
        return 0.0
    gap = (objective - bound) / bound
    return 0.0 if abs(gap) <= ROUNDING else gap
