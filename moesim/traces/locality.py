"""How well a few experts serve consecutive tokens: segments and caches.

Definitions of segment routing best performance (SRP) and segment cache best hit rate (SCH) follow
"Not All Models Suit Expert Offloading: On Local Routing Consistency of Mixture-of-Expert Models"
(arXiv 2505.16056) and its published code (ljcleo/moe-lrc, ``src/30_srp_calc.py``,
``src/31_srp_refine.py``, ``src/41_sch_calc.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.traces.routing import ExpertIds, RoutingTrace
from moesim.traces.statistics import Floats

CachePolicy: TypeAlias = Literal["lfu", "belady"]
CACHE_POLICIES: tuple[CachePolicy, ...] = ("lfu", "belady")
_AGE_BITS = 32


def segment_routing_performance(trace: RoutingTrace, segment_tokens: int) -> tuple[Floats, float]:
    r"""SRP(m): best F1 of one fixed group of experts a segment, by layer ``(layers,)`` and of the model.

    Over all windows of ``m`` consecutive tokens of a request, let :math:`n_e` be the tokens of the
    window that chose expert ``e``, and predict the group :math:`\{e : n_e \ge \theta\}` for all its
    tokens. With sums over windows and experts,

    .. math:: \mathrm{SRP}(m) = \max_\theta \frac{2 \sum_{n \ge \theta} n}{m\,|\{n \ge \theta\}| + \sum n}

    the F1 of precision :math:`\sum_{n\ge\theta} n / (m |\{n\ge\theta\}|)` and recall
    :math:`\sum_{n\ge\theta} n / \sum n`. The model's value sums over layers with one threshold.
    Requests shorter than ``m`` have no window; without any window the values are 0.

    Parameters
    ----------
    segment_tokens : int
        ``m >= 1``. [tokens]
    """
    if segment_tokens < 1:
        raise InputError.at("segment_tokens", segment_tokens, "a whole number >= 1")
    histogram = np.zeros((trace.num_layers, segment_tokens + 1), np.int64)
    bounds = [*trace.request_starts().tolist(), trace.num_tokens]
    for start, stop in zip(bounds, bounds[1:], strict=False):
        if stop - start >= segment_tokens:
            histogram += _window_histogram(trace.expert_ids[start:stop], trace.num_experts, segment_tokens)
    return np.array([_best_f1(row) for row in histogram]), _best_f1(histogram.sum(axis=0))


def _window_histogram(ids: ExpertIds, num_experts: int, segment_tokens: int) -> NDArray[np.int64]:
    """How many pairs of window and expert have each number of uses, ``(layers, segment_tokens + 1)``."""
    tokens, layers, _ = ids.shape
    found = np.zeros((layers, segment_tokens + 1), np.int64)
    for layer in range(layers):
        uses = np.zeros((tokens + 1, num_experts + 1), np.int32)
        chosen = np.minimum(ids[:, layer], num_experts).astype(np.int64)
        uses[1 + np.arange(tokens)[:, None], chosen] = 1
        np.cumsum(uses, axis=0, out=uses)
        window = uses[segment_tokens:, :num_experts] - uses[:-segment_tokens, :num_experts]
        found[layer] = np.bincount(window.ravel(), minlength=segment_tokens + 1)
    return found


def _best_f1(histogram: NDArray[np.int64]) -> float:
    segment = histogram.size - 1
    uses = histogram * np.arange(histogram.size)
    predicted = np.cumsum(histogram[::-1])[::-1] * segment
    matched = np.cumsum(uses[::-1])[::-1]
    total = uses.sum()
    return float((2.0 * matched / np.maximum(predicted + total, 1)).max())


def segment_cover_fraction(trace: RoutingTrace, segment_tokens: int, cache_ratios: Sequence[float]) -> Floats:
    """Share of choices among a segment's own most used experts, ``(ratios, layers)``.

    Requests are cut into segments of ``segment_tokens`` one after the other (a shorter rest is left out);
    the best fixed set of a segment is its ``ratio * k`` most used experts.
    """
    sizes = [min(trace.num_experts, round(ratio * trace.top_k)) for ratio in cache_ratios]
    covered = np.zeros((len(sizes), trace.num_layers))
    total = np.zeros(trace.num_layers)
    column = np.arange(trace.num_layers)[:, None] * (trace.num_experts + 1)
    bounds = [*trace.request_starts().tolist(), trace.num_tokens]
    for start, stop in zip(bounds, bounds[1:], strict=False):
        for first in range(start, stop - segment_tokens + 1, segment_tokens):
            ids = np.minimum(trace.expert_ids[first : first + segment_tokens], trace.num_experts)
            flat = np.bincount((ids + column).ravel(), minlength=column.size * (trace.num_experts + 1))
            uses = -np.sort(-flat.reshape(trace.num_layers, -1)[:, : trace.num_experts], axis=1)
            covered += [uses[:, :size].sum(axis=1) for size in sizes]
            total += uses.sum(axis=1)
    return np.asarray(covered / np.maximum(total, 1), np.float64)


def segment_cache_hit_fraction(
    trace: RoutingTrace, segment_tokens: int, cache_ratios: Sequence[float]
) -> Floats:
    r"""SCH(m, rho): hit rate of a cache that knows the next ``m`` tokens, ``(ratios, layers)``.

    A cache of ``rho * k`` experts a layer starts empty in every request. Experts of the present token
    are looked up together and loaded; what is evicted for them is least used in the ``m`` tokens from
    the present one on, and among equals used longest ago.

    Parameters
    ----------
    segment_tokens : int
        ``m``. [tokens]
    cache_ratios : sequence of float
        ``rho >= 1``: cache size over experts a token. [-]
    """
    if segment_tokens < 1 or any(ratio < 1 for ratio in cache_ratios):
        raise InputError.at("segment_tokens, cache_ratios", (segment_tokens, *cache_ratios), "numbers >= 1")
    sizes = [min(trace.num_experts, round(ratio * trace.top_k)) for ratio in cache_ratios]
    hits = np.zeros((len(sizes), trace.num_layers), np.int64)
    lookups = np.zeros(trace.num_layers, np.int64)
    bounds = [*trace.request_starts().tolist(), trace.num_tokens]
    for start, stop in zip(bounds, bounds[1:], strict=False):
        ids = np.minimum(trace.expert_ids[start:stop], trace.num_experts).astype(np.int64)
        cache = _Cache(trace.num_layers, trace.num_experts, sizes)
        coming = np.zeros((trace.num_layers, trace.num_experts + 1), np.int64)
        for token in range(min(segment_tokens, len(ids))):
            coming[cache.row, ids[token]] += 1
        for token in range(len(ids)):
            hits += cache.serve(ids[token], coming)
            coming[cache.row, ids[token]] -= 1
            if token + segment_tokens < len(ids):
                coming[cache.row, ids[token + segment_tokens]] += 1
        lookups += (ids < trace.num_experts).sum(axis=(0, 2))
    return np.asarray(hits / np.maximum(lookups, 1), np.float64)


def cache_hit_fraction(
    expert_ids: ExpertIds, num_experts: int, slots_per_layer: Sequence[int], policy: CachePolicy
) -> Floats:
    """Hit rate of a per-layer expert cache under a policy, ``(cache sizes, layers)``.

    Parameters
    ----------
    expert_ids : ndarray of uint8 or uint16, ``(tokens, layers, slots)``
        Tokens one after the other; the cache starts empty. Choices of a token are looked up together.
    num_experts : int
        Experts a layer. [-]
    slots_per_layer : sequence of int
        Cache sizes, each at least the slots of a token. [experts]
    policy : {'lfu', 'belady'}
        Evict the expert used least often so far, or the one that is needed again last (the optimum, as
        it knows the future). Among equals the one used longest ago goes.

    See Also
    --------
    moesim.traces.statistics.lru_hit_fraction : the least recently used expert goes.
    """
    if policy not in CACHE_POLICIES:
        raise InputError.at("policy", policy, ", ".join(CACHE_POLICIES))
    tokens, layers, slots = expert_ids.shape
    if any(size < min(slots, num_experts) for size in slots_per_layer):
        raise InputError.at("slots_per_layer", list(slots_per_layer), f"at least {slots} experts")
    ids = np.minimum(expert_ids, num_experts).astype(np.int64)
    cache = _Cache(layers, num_experts, slots_per_layer)
    score = np.zeros((layers, num_experts + 1), np.int64)
    following = _next_use(ids, num_experts) if policy == "belady" else None
    hits = np.zeros((len(slots_per_layer), layers), np.int64)
    for token in range(tokens):
        if following is None:
            score[cache.row, ids[token]] += 1
        else:
            score[cache.row, ids[token]] = tokens - following[token]
        hits += cache.serve(ids[token], score)
    lookups = (ids < num_experts).sum(axis=(0, 2))
    return np.asarray(hits / np.maximum(lookups, 1), np.float64)


def _next_use(ids: NDArray[np.int64], num_experts: int) -> NDArray[np.int32]:
    """Token at which each choice is needed again, or the number of tokens, ``(tokens, layers, slots)``."""
    tokens, layers, _ = ids.shape
    row = np.arange(layers)[:, None]
    found = np.empty(ids.shape, np.int32)
    upcoming = np.full((layers, num_experts + 1), tokens, np.int32)
    for token in range(tokens - 1, -1, -1):
        found[token] = upcoming[row, ids[token]]
        upcoming[row, ids[token]] = token
    return found


class _Cache:
    """Caches of several sizes over all layers, which evict by a score."""

    def __init__(self, layers: int, num_experts: int, sizes: Sequence[int]) -> None:
        self.row = np.arange(layers)[:, None]
        self.experts = num_experts
        self.sizes = [min(size, num_experts) for size in sizes]
        self.held = np.zeros((len(self.sizes), layers, num_experts + 1), np.bool_)
        self.last_use = np.zeros((layers, num_experts + 1), np.int64)
        self.now = 0

    def serve(self, ids: NDArray[np.int64], score: NDArray[np.int64]) -> NDArray[np.int64]:
        """Look up one token's experts ``(layers, slots)``, load them, evict; hits ``(sizes, layers)``."""
        self.now += 1
        hits = (self.held[:, self.row, ids] & (ids < self.experts)).sum(axis=-1)
        self.held[:, self.row, ids] = True
        self.held[..., self.experts] = False
        self.last_use[self.row, ids] = self.now
        # slots of one token are equally recent: the expert number makes every worth different
        worth = (score << _AGE_BITS) + self.last_use * (self.experts + 1) + np.arange(self.experts + 1)
        worth[self.row, ids] = np.iinfo(np.int64).max
        worth = worth[:, : self.experts]
        for held, size in zip(self.held, self.sizes, strict=True):
            if size < self.experts:
                standing = np.where(held[:, : self.experts], worth, -1)
                least = np.partition(standing, self.experts - size, axis=-1)[:, self.experts - size, None]
                held[:, : self.experts] &= standing >= least
        return np.asarray(hits, np.int64)
