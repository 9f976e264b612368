"""Numbers that say how skewed, how repetitive and how predictable routing is.

Pure functions of arrays; :func:`summarize` applies them to a trace. Symbols: ``c[e]`` tokens that
chose expert ``e``, ``p = c / sum(c)``, ``E`` experts, ``k`` choices a token, ``G`` ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.traces.routing import Counts, ExpertIds, RoutingTrace, Sampling

Floats: TypeAlias = NDArray[np.float64]

TOUCH_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Batch sizes of the touched-experts curve. [tokens]"""
PAIR_TOKENS = 131_072
"""Tokens over which a summary counts pairs of layers; all of a shorter trace. [tokens]"""
_LRU_BLOCK_VALUES = 1 << 18


def imbalance_ratio(counts: NDArray[Any]) -> Floats:
    r"""Largest over mean count along the last axis, ``(...)``; 1 when balanced, 0 without tokens.

    .. math:: \max_e c_e \big/ \tfrac1E \sum_e c_e
    """
    return ratio_or_zero(counts.max(axis=-1), counts.mean(axis=-1))


def variation_ratio(counts: NDArray[Any]) -> Floats:
    r"""Coefficient of variation along the last axis, ``(...)``: population deviation over mean. [-]"""
    return ratio_or_zero(counts.std(axis=-1), counts.mean(axis=-1))


def gini_fraction(counts: NDArray[Any]) -> Floats:
    r"""Gini coefficient along the last axis, ``(...)``: 0 when balanced, ``1 - 1/E`` for one expert.

    .. math:: \sum_{i=1}^{E} (2i - E - 1)\, c_{(i)} \big/ E \sum_i c_{(i)} \quad (c_{(i)}\ \text{ascending})
    """
    size = counts.shape[-1]
    ordered = np.sort(counts, axis=-1)
    weights = 2.0 * np.arange(1, size + 1) - size - 1.0
    return ratio_or_zero((ordered * weights).sum(axis=-1), size * ordered.sum(axis=-1))


def entropy_fraction(counts: NDArray[Any]) -> Floats:
    r"""Entropy of the load over its largest value, ``(...)``: ``-sum p ln p / ln E``; 1 when balanced."""
    size = counts.shape[-1]
    p = ratio_or_zero(counts, counts.sum(axis=-1, keepdims=True))
    plogp = p * np.log(np.where(p > 0, p, 1.0))
    return -plogp.sum(axis=-1) / np.log(size) if size > 1 else np.ones(counts.shape[:-1])


def dead_experts(counts: NDArray[Any]) -> NDArray[np.int64]:
    """Experts without any token along the last axis, ``(...)``. [-]"""
    return np.asarray((counts == 0).sum(axis=-1), np.int64)


def rank_imbalance_ratio(counts: NDArray[Any], num_ranks: int) -> Floats:
    """Largest over mean rank load with experts dealt to ranks in contiguous runs, ``(...)``.

    Raises
    ------
    InputError
        ``num_ranks`` does not divide the number of experts.
    """
    size = counts.shape[-1]
    if num_ranks < 1 or size % num_ranks:
        raise InputError.at("num_ranks", num_ranks, f"a divisor of num_experts={size}")
    return imbalance_ratio(counts.reshape(*counts.shape[:-1], num_ranks, size // num_ranks).sum(axis=-1))


def mutual_information_nats(pairs: NDArray[Any]) -> Floats:
    r"""Mutual information of the two indices of pair counts, ``(..., E, E)`` to ``(...)``. [nat]

    .. math:: \sum_{ij} P_{ij} \ln \frac{P_{ij}}{P_{i\cdot} P_{\cdot j}}

    Estimated from counts it is biased upward by about ``(E - 1)^2 / (2 N)`` for ``N`` pairs.
    """
    joint = ratio_or_zero(pairs, pairs.sum(axis=(-2, -1), keepdims=True))
    independent = joint.sum(axis=-1, keepdims=True) * joint.sum(axis=-2, keepdims=True)
    held = joint > 0
    log_ratio = np.log(np.where(held, joint, 1.0) / np.where(held, independent, 1.0))
    return np.asarray((joint * log_ratio).sum(axis=(-2, -1)))


def repeat_fraction(trace: RoutingTrace) -> Floats:
    """Share of a token's experts that the previous token of its request also chose, ``(layers,)``."""
    ids, request = trace.expert_ids, trace.request_index
    kept = np.zeros(trace.num_layers, np.int64)
    offered = np.zeros(trace.num_layers, np.int64)
    step = 4096
    for start in range(0, trace.num_tokens - 1, step):
        part = ids[start : start + step + 1]
        same = np.diff(request[start : start + step + 1]) == 0
        before, after = part[:-1][same], part[1:][same]
        real = after < trace.num_experts
        found = (after[..., :, None] == before[..., None, :]).any(axis=-1) & real
        kept += found.sum(axis=(0, 2))
        offered += real.sum(axis=(0, 2))
    return ratio_or_zero(kept, offered)


def independent_repeat_fraction(counts: NDArray[Any], num_tokens: int) -> Floats:
    r"""What :func:`repeat_fraction` would be if tokens were independent, ``(...)``.

    .. math:: \sum_e p_e\, c_e / T

    the chance that a chosen expert (drawn by ``p``) is among another token's choices (``c_e / T``).
    """
    share = ratio_or_zero(counts, counts.sum(axis=-1, keepdims=True))
    return np.asarray((share * counts / num_tokens).sum(axis=-1))


def touched_experts(
    trace: RoutingTrace,
    batch_sizes: Sequence[int],
    rng: np.random.Generator,
    *,
    num_batches: int = 64,
    sampling: Sampling = "scattered",
) -> Floats:
    """Mean number of distinct experts that a batch of tokens needs, ``(batch sizes, layers)``. [-]

    Expectation over ``num_batches`` random batches of each size. Weight traffic of a decode step
    follows this number, not the count of tokens.
    """
    return np.stack(
        [
            (trace.batches(size, num_batches, rng, sampling=sampling) > 0).sum(axis=-1).mean(axis=0)
            for size in batch_sizes
        ]
    )


def lru_hit_fraction(
    expert_ids: ExpertIds, num_experts: int, slots_per_layer: Sequence[int], *, one_by_one: bool = False
) -> Floats:
    """Hit rate of a per-layer least-recently-used expert cache, ``(cache sizes, layers)``.

    Parameters
    ----------
    expert_ids : ndarray of uint8 or uint16, ``(tokens, layers, slots)``
        Tokens in the order in which they are served, one at a time; the cache starts empty.
    num_experts : int
        Experts a layer. [-]
    slots_per_layer : sequence of int
        Cache sizes. [experts]
    one_by_one : bool, default False
        Load each choice before the next one of the same token is looked up, so that choices of one
        token may evict each other. By default all choices of a token are looked up together.

    Notes
    -----
    An expert is resident exactly when its last use is among the ``size`` latest, so one pass serves
    every size.
    """
    if one_by_one:
        return _one_by_one(expert_ids, num_experts, slots_per_layer)
    tokens, layers, slots = expert_ids.shape
    hits = np.zeros((len(slots_per_layer), layers), np.int64)
    lookups = np.zeros(layers, np.int64)
    row = np.arange(layers)[:, None]
    # stamps of last use, one row more than tokens; a column more than experts takes the empty slots
    block = max(1, _LRU_BLOCK_VALUES // (layers * (num_experts + 1)))
    stamps = np.zeros((block + 1, layers, num_experts + 1), np.int32)
    for start in range(0, tokens, block):
        part = np.minimum(expert_ids[start : start + block], num_experts).astype(np.int64)
        count = len(part)
        stamps[1:] = 0
        order = 1 + (start + np.arange(count)[:, None, None]) * slots + np.arange(slots)
        stamps[1 + np.arange(count)[:, None, None], row, part] = order
        np.maximum.accumulate(stamps, axis=0, out=stamps)
        before = stamps[:count]
        real = part < num_experts
        used = np.where(real, np.take_along_axis(before, part, axis=-1), 0)
        lookups += real.sum(axis=(0, 2))
        places = [max(0, num_experts - size) for size in slots_per_layer]
        ordered = np.partition(before[..., :num_experts], sorted(set(places)), axis=-1)
        for index, place in enumerate(places):
            hits[index] += ((used > 0) & (used >= ordered[..., place, None])).sum(axis=(0, 2))
        stamps[0] = stamps[count]
    return ratio_or_zero(hits, lookups)


def _one_by_one(expert_ids: ExpertIds, num_experts: int, slots_per_layer: Sequence[int]) -> Floats:
    """:func:`lru_hit_fraction` in which choices of one token may evict each other."""
    tokens, layers, slots = expert_ids.shape
    single = expert_ids.transpose(0, 2, 1).reshape(tokens * slots, layers, 1)
    return lru_hit_fraction(single, num_experts, slots_per_layer)


@dataclass(frozen=True, slots=True, eq=False)
class TraceStatistics:
    """Statistics of a trace, one value a layer.

    Attributes
    ----------
    imbalance_ratio, variation_ratio, gini_fraction, entropy_fraction, dead_experts : ndarray, ``(layers,)``
        Of the summed load; see the functions of the same names.
    rank_imbalance_ratio : dict of int to ndarray, ``(layers,)``
        By number of ranks.
    mutual_information_nats : ndarray, ``(layers - 1,)``
        Between choices in neighbouring layers. [nat]
    repeat_fraction, independent_repeat_fraction : ndarray, ``(layers,)``
        Next-token repeat, and its value for independent tokens.
    touched_experts : dict of int to ndarray, ``(layers,)``
        Distinct experts of scattered batches, by batch size.
    lru_hit_fraction : dict of int to ndarray, ``(layers,)``
        By cache size in experts.
    """

    imbalance_ratio: Floats
    variation_ratio: Floats
    gini_fraction: Floats
    entropy_fraction: Floats
    dead_experts: NDArray[np.int64]
    rank_imbalance_ratio: dict[int, Floats]
    mutual_information_nats: Floats
    repeat_fraction: Floats
    independent_repeat_fraction: Floats
    touched_experts: dict[int, Floats]
    lru_hit_fraction: dict[int, Floats]

    def means(self) -> dict[str, float]:
        """Means over layers, flat: ``{'gini_fraction': .., 'rank_imbalance_ratio_8': ..}``."""
        flat: dict[str, float] = {}
        for name in self.__slots__:
            value = getattr(self, name)
            if isinstance(value, dict):
                flat |= {f"{name}_{key}": float(array.mean()) for key, array in value.items()}
            elif value.size:
                flat[name] = float(value.mean())
        return flat


def summarize(
    trace: RoutingTrace,
    rng: np.random.Generator,
    *,
    num_ranks: Sequence[int] = (4, 8, 16),
    batch_sizes: Sequence[int] = TOUCH_BATCHES,
    num_batches: int = 64,
    lru_tokens: int = 20_000,
    pair_tokens: int = PAIR_TOKENS,
) -> TraceStatistics:
    """All statistics of a trace.

    Parameters
    ----------
    rng : numpy.random.Generator
        For the random batches of the touched-experts curve.
    num_ranks : sequence of int
        Rank counts; those that do not divide the experts are left out.
    batch_sizes : sequence of int
        Sizes of the touched-experts curve. [tokens]
    num_batches : int
        Random batches a size. [-]
    lru_tokens : int
        The cache is simulated over at most this many first tokens. [tokens]
    pair_tokens : int
        Pairs of neighbouring layers are counted over at most about this many tokens, evenly spaced; the
        estimate's bias then is below ``E^2 / (2 k^2 pair_tokens)`` nat. [tokens]
    """
    counts: Counts = trace.counts()
    spaced = trace.take(slice(None, None, max(1, trace.num_tokens // pair_tokens)))
    caches = [s for s in (2 * trace.top_k, 4 * trace.top_k) if s <= trace.num_experts]
    hits = lru_hit_fraction(trace.expert_ids[:lru_tokens], trace.num_experts, caches)
    touched = touched_experts(trace, batch_sizes, rng, num_batches=num_batches)
    return TraceStatistics(
        imbalance_ratio=imbalance_ratio(counts),
        variation_ratio=variation_ratio(counts),
        gini_fraction=gini_fraction(counts),
        entropy_fraction=entropy_fraction(counts),
        dead_experts=dead_experts(counts),
        rank_imbalance_ratio={
            g: rank_imbalance_ratio(counts, g) for g in num_ranks if trace.num_experts % g == 0
        },
        mutual_information_nats=mutual_information_nats(spaced.transitions()),
        repeat_fraction=repeat_fraction(trace),
        independent_repeat_fraction=independent_repeat_fraction(counts, trace.num_tokens),
        touched_experts=dict(zip(batch_sizes, touched, strict=True)),
        lru_hit_fraction=dict(zip(caches, hits, strict=True)),
    )


def ratio_or_zero(numerator: NDArray[Any], denominator: NDArray[Any]) -> Floats:
    """Quotient in float64 with 0 where the denominator is 0."""
    top, bottom = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    shape = np.broadcast_shapes(top.shape, bottom.shape)
    return np.divide(top, bottom, out=np.zeros(shape), where=bottom != 0)
