"""Bits of every expert under a mean: the integer programme of MC-MoE and MC#, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.placement.milp import Limits, minimise, new_model, total, variable

GAUSSIAN_ERROR = {1: 0.6028, 2: 0.3428, 3: 0.1858, 4: 0.0975}
"""Relative root-mean-square error of the best quantiser of normal weights, by bits. [-]

J. Max, Quantizing for minimum distortion, IRE Transactions on Information Theory 6 (1960), table I.
"""
LIMITS = Limits(time_limit_s=30.0, max_nodes=100_000, gap_fraction=0.0)


@dataclass(frozen=True, eq=False)
class BitPlan:
    """Widths of all experts.

    Attributes
    ----------
    bits : ndarray of int64, ``(layers, experts)``
        Chosen widths. [bit]
    error, lower_bound : float
        Weighted error of the plan, and what no plan of the same mean falls below. [-]
    uniform_error : float or None
        The same where every expert has the mean width, if that is one of the widths. [-]
    """

    bits: NDArray[np.int64]
    error: float
    lower_bound: float
    uniform_error: float | None

    @property
    def mean_bits(self) -> float:
        """Mean width over all experts. [bit]"""
        return float(self.bits.mean())

    def activated_bits(self, counts: NDArray[np.int64]) -> float:
        """Mean width of the experts that tokens choose, by ``counts`` ``(layers, experts)``. [bit]"""
        return float((self.bits * counts).sum() / counts.sum())


def allocate_bits(
    counts: NDArray[np.int64],
    mean_bits: float,
    *,
    weights: NDArray[np.float64] | None = None,
    widths: Sequence[int] = (1, 2, 3),
    exponents: tuple[float, float, float] = (1.0, 1.0, 2.0),
) -> BitPlan:
    """Least weighted error of every layer whose experts share ``mean_bits``.

    Expert ``i`` at ``j`` bits costs ``phi_i**a * w_i**b * e_j**c`` with its share of the tokens, its mean
    gate weight, and the error of ``j`` bits. A layer keeps at least one expert at the widest and one at the
    second widest format, as MC-MoE (arXiv 2410.06270) does.

    Parameters
    ----------
    counts : ndarray, ``(layers, experts)``
        Tokens that chose each expert. [tokens]
    mean_bits : float
        At most, over the experts of a layer. [bit]
    weights : ndarray, ``(layers, experts)``, optional
        Mean gate weight of each expert; equal where it is not known. [-]
    widths : sequence of int
        Formats to choose from. [bit]
    exponents : tuple of float
        ``a``, ``b`` and ``c``.

    Raises
    ------
    InputError
        A width without a known error, or a mean outside the widths.
    """
    unknown = [width for width in widths if width not in GAUSSIAN_ERROR]
    if unknown or len(set(widths)) < 2:
        raise InputError.at("widths", list(widths), "at least two of 1, 2, 3, 4 bits")
    order = sorted(set(widths))
    experts = counts.shape[1]
    # one expert at each of the two widest formats is always kept
    least = ((experts - 2) * order[0] + order[-1] + order[-2]) / experts
    if not least <= mean_bits <= order[-1]:
        accepted = f"{least:.2f} to {order[-1]} with {experts} experts a layer and widths {order}"
        raise InputError.at("mean_bits", mean_bits, accepted)
    share = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    a, b, c = exponents
    importance = share**a if weights is None else share**a * weights**b
    errors = np.array([GAUSSIAN_ERROR[width] ** c for width in order])
    plans = [_layer(row, errors, order, mean_bits) for row in importance]
    uniform = None
    if mean_bits in order:
        uniform = float(importance.sum() * errors[order.index(int(mean_bits))])
    bits = np.array([plan[0] for plan in plans], np.int64)
    error = float((importance * errors[np.searchsorted(order, bits)]).sum())
    return BitPlan(bits, error, float(sum(plan[1] for plan in plans)), uniform)


def _layer(
    importance: NDArray[np.float64], errors: NDArray[np.float64], widths: Sequence[int], mean_bits: float
) -> tuple[list[int], float]:
    """Widths of one layer's experts, and the proven bound of its error."""
    model = new_model("bits")
    experts = range(importance.size)
    # the solver works with errors relative to the layer's own
    scale = float(importance.sum() * errors.max()) or 1.0
    x: list[list[Any]] = [
        [variable(model, f"x_{i}_{j}", 0, 1, whole=True) for j in range(len(widths))] for i in experts
    ]
    model += total(
        [(x[i][j], float(importance[i] * errors[j]) / scale) for i in experts for j in range(len(widths))]
    )
    for i in experts:
        model += total([(chosen, 1) for chosen in x[i]]) == 1
    spent = [(x[i][j], width) for i in experts for j, width in enumerate(widths)]
    model += total(spent) <= int(round(mean_bits * importance.size, 6))
    for j in (len(widths) - 1, len(widths) - 2):
        model += total([(x[i][j], 1) for i in experts]) >= 1
    found = minimise(model, LIMITS)
    assert found.values is not None  # feasible by the check of the mean
    chosen = [
        widths[int(np.argmax([found.values[f"x_{i}_{j}"] for j in range(len(widths))]))] for i in experts
    ]
    return chosen, found.dual_bound * scale
