"""How routing differs between times, domains and batches, and which experts go together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.traces.routing import CHUNK_TOKENS, Counts, RoutingTrace, Sampling, count_experts
from moesim.traces.statistics import Floats, rank_imbalance_ratio, ratio_or_zero

SUPER_RATIO = 4.0
"""An expert with more than this times the mean load is called super."""


def super_experts(counts: Counts, ratio: float = SUPER_RATIO) -> NDArray[np.int64]:
    """Experts with more than ``ratio`` times the mean load along the last axis, ``(...)``. [-]"""
    return np.asarray((counts > ratio * counts.mean(axis=-1, keepdims=True)).sum(axis=-1), np.int64)


def cosine_fraction(first: NDArray[np.int64], second: NDArray[np.int64]) -> Floats:
    """Cosine of two loads along the last axis, ``(...)``; 0 where one is empty. [-]"""
    a, b = first.astype(np.float64), second.astype(np.float64)
    length = np.sqrt((a * a).sum(axis=-1) * (b * b).sum(axis=-1))
    return ratio_or_zero((a * b).sum(axis=-1), length)


def jensen_shannon_nats(first: NDArray[np.int64], second: NDArray[np.int64]) -> Floats:
    r"""Jensen-Shannon divergence of two loads along the last axis, ``(...)``: 0 to ``ln 2``. [nat]

    .. math:: H\!\left(\tfrac{p+q}2\right) - \tfrac{H(p) + H(q)}2
    """
    p, q = _shares(first), _shares(second)
    return np.maximum(_entropy((p + q) / 2) - (_entropy(p) + _entropy(q)) / 2, 0.0)


def drift(trace: RoutingTrace, window_tokens: int) -> tuple[Floats, Floats]:
    """Cosine and Jensen-Shannon divergence of the loads of windows that follow each other.

    Parameters
    ----------
    window_tokens : int
        Rows of a window; a shorter rest at the end is left out. [tokens]

    Returns
    -------
    tuple of ndarray, ``(windows - 1, layers)`` each
        Cosine [-] and divergence [nat]. Short windows differ by chance alone: compare with a trace
        whose rows are shuffled.
    """
    count = trace.num_tokens // window_tokens if window_tokens > 0 else 0
    if count < 2:
        raise InputError.at("window_tokens", window_tokens, f"1 to {trace.num_tokens // 2} tokens")
    loads = np.stack(
        [
            count_experts(trace.expert_ids[i * window_tokens : (i + 1) * window_tokens], trace.num_experts)
            for i in range(count)
        ]
    )
    return cosine_fraction(loads[:-1], loads[1:]), jensen_shannon_nats(loads[:-1], loads[1:])


def domain_cosine_fraction(trace: RoutingTrace) -> Floats:
    """Cosine of the loads of every two domains, mean over layers, ``(domains, domains)``. [-]"""
    loads = np.stack(
        [
            count_experts(trace.expert_ids[trace.domain_index == index], trace.num_experts)
            for index in range(len(trace.info.domains))
        ]
    )
    return np.asarray(cosine_fraction(loads[:, None], loads[None, :]).mean(axis=-1))


def co_activation(trace: RoutingTrace) -> Counts:
    """Tokens that chose both experts of a pair, ``(layers, experts, experts)``; the diagonal is the load."""
    wide = trace.num_experts + 1
    pairs = np.zeros((trace.num_layers, trace.num_experts, trace.num_experts), np.int64)
    for start in range(0, trace.num_tokens, CHUNK_TOKENS):
        ids = np.minimum(trace.expert_ids[start : start + CHUNK_TOKENS], trace.num_experts).astype(np.int64)
        for layer in range(trace.num_layers):
            codes = ids[:, layer, :, None] * wide + ids[:, layer, None, :]
            square = np.bincount(codes.ravel(), minlength=wide * wide).reshape(wide, wide)
            pairs[layer] += square[:-1, :-1]
    return pairs


def fan_out(trace: RoutingTrace, num_ranks: int) -> Floats:
    """Mean number of distinct ranks a token's experts lie on, experts in contiguous runs, ``(layers,)``. [-]

    What a dispatch that sends a token once a rank pays for.

    Raises
    ------
    InputError
        ``num_ranks`` does not divide the experts.
    """
    if num_ranks < 1 or trace.num_experts % num_ranks:
        raise InputError.at("num_ranks", num_ranks, f"a divisor of num_experts={trace.num_experts}")
    each = trace.num_experts // num_ranks
    total = np.zeros(trace.num_layers, np.int64)
    for start in range(0, trace.num_tokens, CHUNK_TOKENS):
        ids = trace.expert_ids[start : start + CHUNK_TOKENS]
        ranks = np.sort(np.where(ids < trace.num_experts, ids // each, num_ranks), axis=-1)
        real = ranks < num_ranks
        first = np.ones(ranks.shape, np.bool_)
        first[..., 1:] = ranks[..., 1:] != ranks[..., :-1]
        total += (first & real).sum(axis=(0, 2))
    return np.asarray(total / trace.num_tokens, np.float64)


def batch_imbalance_ratio(
    trace: RoutingTrace,
    num_ranks: int,
    batch_sizes: Sequence[int],
    rng: np.random.Generator,
    *,
    num_batches: int = 64,
    sampling: Sampling = "scattered",
) -> Floats:
    """Largest over mean rank load of random batches, mean over batches, ``(batch sizes, layers)``. [-]

    A placement that is balanced over the whole trace is not in a single batch.
    """
    return np.stack(
        [
            rank_imbalance_ratio(trace.batches(size, num_batches, rng, sampling=sampling), num_ranks).mean(
                axis=0
            )
            for size in batch_sizes
        ]
    )


def _shares(counts: NDArray[np.int64]) -> Floats:
    return ratio_or_zero(counts, counts.sum(axis=-1, keepdims=True))


def _entropy(shares: Floats) -> Floats:
    return np.asarray(-(shares * np.log(np.where(shares > 0, shares, 1.0))).sum(axis=-1))
