"""LSH-MoE: one centroid travels for every bucket of similar tokens (arXiv:2411.08446).

Tokens of a bucket share what their experts answer, each with its own residual added: exchanges and products
are of ``rate`` times the rows; hashing costs a few small products.
"""

from __future__ import annotations


def speedup(
    exchange_share: float, rate: float, *, experts_share: float = 0.0, hashing_share: float = 0.0
) -> float:
    """Step time without over with compression (Amdahl).

    Parameters
    ----------
    exchange_share, experts_share : float
        Parts of the step that exchanges, and products of the experts, take. [-]
    rate : float
        Centroids over tokens. [-]
    hashing_share : float
        Hashing, centroids and residuals, as a part of the step. [-]

    Examples
    --------
    >>> round(speedup(0.4, 0.2), 3)
    1.471
    """
    return 1.0 / (1.0 - (exchange_share + experts_share) * (1.0 - rate) + hashing_share)


def hashing_flops(hidden: int, num_hashes: int) -> float:
    """Cross-polytope hashes of a token: a rotation each, then the largest of ``2 * hidden`` signs. [FLOP]"""
    return 2.0 * num_hashes * hidden**2
