"""Fitting the ``matched`` generator to a recorded trace: measure, invert, check by simulation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from operator import mul

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.traces.description import PREFILL
from moesim.traces.matched import (
    BIAS_ROUNDS,
    PERSISTENCES,
    MatchedParameters,
    likings,
    matched_trace,
    normalised,
    rates_of,
)
from moesim.traces.routing import ExpertIds, RoutingTrace
from moesim.traces.slices import by_layer
from moesim.traces.statistics import lru_hit_fraction, mutual_information_nats
from moesim.traces.synthetic import balanced_bias, choose, inclusion_targets

LAGS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Distances at which repetition is measured. [tokens]"""
CONTEXT_SIZES = (8, 6, 4, 3, 2)
STRENGTH_MAX = 9.0
FIT_TOKENS = 8192
FIT_LAYERS = 10
LRU_TOKENS = 8192
_HALVINGS = 6
_SEEDS = 4
_NEARBY = 1.4
_FACTOR_MAX = 2.0
_CURVE_SAMPLES = 1500
_AT_LIMIT = 0.95
_PAIR_TOKENS = 6000
_DESCENT_ROUNDS = 3000
_SUM_WEIGHT = 10.0
_LOAD_PRIOR = 0.2


def fit_matched(trace: RoutingTrace, rng: np.random.Generator, *, source: str = "") -> MatchedParameters:
    """Parameters of the ``matched`` generator whose traces behave like this one.

    Parameters
    ----------
    trace : RoutingTrace
        Measured trace without empty slots, at least two requests or 128 tokens long.
    rng : numpy.random.Generator
        For the simulations of the fit.
    source : str
        Kept with the parameters; default: the trace's own.

    Raises
    ------
    InputError
        A trace too short to show repetition.

    Notes
    -----
    Smaller contexts tie layers more tightly. The largest context whose affinity reaches the trace's
    below :data:`STRENGTH_MAX` is taken. Where repetition then exceeds what one context allows,
    strength grows and layers share less. Repetition beyond the next token is scaled so that
    simulated hit rates of a least-recently-used cache meet the trace's.
    """
    if trace.num_tokens < 16:
        raise InputError.at("trace", trace.num_tokens, "at least 16 tokens to fit")
    seeds = rng.integers(2**63, size=_SEEDS).tolist()
    base = _start(trace, source)
    repetition = lag_repetition(trace, LAGS)
    curve = np.zeros(1)
    # once roughly, then once more: contexts that last are fewer, and tie layers by chance
    for used in (seeds[:1], seeds):
        base, curve = _tied(trace, base, repetition[0], used)
        wanted = np.interp(repetition, curve, np.linspace(0.0, 1.0, curve.size))
        base = _caching(trace, base, wanted, used)
    return _with_domains(trace, base, curve)


def lag_repetition(trace: RoutingTrace, lags: tuple[int, ...]) -> NDArray[np.float64]:
    """Share of a token's experts that the token ``lag`` before it in its request chose, mean over layers.

    Lags longer than every request repeat the value of the longest lag there is. ``(lags,)`` [-]
    """
    found: list[float] = []
    for lag in lags:
        rows = np.flatnonzero(trace.request_index[lag:] == trace.request_index[:-lag])
        if rows.size:
            rows = rows[:: -(-rows.size // _PAIR_TOKENS)]
            found.append(overlap(trace.expert_ids[rows], trace.expert_ids[rows + lag]))
        else:
            found.append(found[-1] if found else 0.0)
    return np.array(found)


def _part(trace: RoutingTrace, num_tokens: int) -> RoutingTrace:
    """About so many tokens: whole requests of every domain where there are enough of them."""
    if trace.num_tokens <= 1.5 * num_tokens:
        return trace
    if trace.num_requests >= 4 * trace.num_tokens / num_tokens:
        return trace.split(num_tokens / trace.num_tokens)[0]
    return trace.window(0, num_tokens)


def overlap(before: ExpertIds, after: ExpertIds) -> float:
    """Share of ``after``'s experts that are among ``before``'s, ``(..., slots)`` each. [-]"""
    return float((after[..., :, None] == before[..., None, :]).any(axis=-1).mean())


def _start(trace: RoutingTrace, source: str) -> MatchedParameters:
    counts = trace.counts().astype(np.float64)
    load = np.maximum(counts, _LOAD_PRIOR)
    load /= load.mean(axis=1, keepdims=True)
    return MatchedParameters(
        model=trace.info.model,
        source=source or trace.info.source,
        top_k=trace.top_k,
        layer_indices=trace.info.layer_indices,
        relative_load=tuple(tuple(round(float(v), 4) for v in row) for row in load),
        context_size=CONTEXT_SIZES[0],
        context_strength=0.0,
        layer_sharing=1.0,
        variance_shares=tuple(float(p == 0) for p in PERSISTENCES),
        num_domains=len(np.unique(trace.domain_index)),
        request_tokens=max(1, round(trace.num_tokens / trace.num_requests)),
        prefill_fraction=round(float((np.asarray(trace.phase) == PREFILL).mean()), 4),
    )


def _tied(
    trace: RoutingTrace, base: MatchedParameters, next_repetition: float, seeds: Sequence[int]
) -> tuple[MatchedParameters, NDArray[np.float64]]:
    """Context size, strength and layer sharing that give the trace's affinity, and the overlap curve."""
    part = _part(trace, FIT_TOKENS)
    small = _thin(base)
    shape = (part.num_tokens, len(small.layer_indices), trace.num_experts, trace.top_k)
    target = _affinity(part)

    def affinity(sharing: float, size: int, strength: float, seed: int) -> float:
        knobs = replace(small, context_strength=strength, layer_sharing=sharing, context_size=size)
        return _affinity(matched_trace(knobs, *shape, np.random.default_rng(seed)))

    size, strength = CONTEXT_SIZES[0], STRENGTH_MAX / 2
    for size in CONTEXT_SIZES if trace.num_layers > 1 else ():
        by_strength = partial(affinity, 1.0, size)
        strength = _crossing(partial(by_strength, seed=seeds[0]), target, STRENGTH_MAX)
        if strength < STRENGTH_MAX * _AT_LIMIT:
            strength = _calibrated(by_strength, strength, target, STRENGTH_MAX, seeds)
            break
    sharing = 1.0
    seed = seeds[0]
    found = replace(base, context_size=size, context_strength=round(strength, 3), layer_sharing=1.0)
    curve = overlap_curve(found, seed)
    while curve[-1] * _AT_LIMIT < next_repetition and found.context_strength < STRENGTH_MAX:
        stronger = min(STRENGTH_MAX, found.context_strength * 1.15 + 0.1)
        found = replace(found, context_strength=round(stronger, 3))
        curve = overlap_curve(found, seed)
    if found.context_strength > strength + 0.01 and trace.num_layers > 1:
        fixed = found.context_strength
        sharing = _crossing(lambda c: affinity(c, size, fixed, seed), target, 1.0)
        found = replace(found, layer_sharing=round(sharing, 3))
    return found, curve


def overlap_curve(parameters: MatchedParameters, seed: int, points: int = 9) -> NDArray[np.float64]:
    """Overlap of two tokens' choices by the correlation of their contexts, at equal steps from 0 to 1."""
    rng = np.random.default_rng(seed)
    targets = inclusion_targets(parameters.load, parameters.top_k)
    layers = np.unique(np.linspace(0, len(targets) - 1, FIT_LAYERS).astype(np.int64))
    shape = (_CURVE_SAMPLES, parameters.context_size)
    found = np.zeros((points, layers.size))
    for column, layer in enumerate(layers):
        likes = likings(parameters, targets.shape[1], rng)
        first = rng.standard_normal(shape, dtype=np.float32)
        other = rng.standard_normal(shape, dtype=np.float32)
        bias = balanced_bias(targets[layer], first @ likes, parameters.top_k, rates_of, BIAS_ROUNDS)
        before = choose(rates_of(first @ likes + bias), parameters.top_k, rng).astype(np.uint16)
        for row, correlation in enumerate(np.linspace(0.0, 1.0, points)):
            mixed = np.float32(correlation) * first + np.float32(np.sqrt(1 - correlation**2)) * other
            after = choose(rates_of(mixed @ likes + bias), parameters.top_k, rng).astype(np.uint16)
            found[row, column] = overlap(before, after)
    return np.asarray(np.maximum.accumulate(found.mean(axis=1)) + np.arange(points) * np.finfo(float).eps)


def _mixture(correlations: NDArray[np.float64]) -> NDArray[np.float64]:
    """Non-negative variance shares whose autocorrelation fits ``correlations`` at :data:`LAGS`."""
    lags = np.array(LAGS, np.float64)
    weight = 1.0 / np.sqrt(lags)
    terms = np.array(PERSISTENCES)[None, :] ** lags[:, None]
    system = np.vstack([terms * weight[:, None], np.full(len(PERSISTENCES), _SUM_WEIGHT)])
    wanted = np.append(correlations * weight, _SUM_WEIGHT)
    gram, moment = (system.T @ system).tolist(), (system.T @ wanted).tolist()
    shares = [1.0 / len(PERSISTENCES)] * len(PERSISTENCES)
    for _ in range(_DESCENT_ROUNDS):
        for i, row in enumerate(gram):
            shares[i] = max(0.0, shares[i] - (sum(map(mul, row, shares)) - moment[i]) / row[i])
    return np.array(shares)


def _caching(
    trace: RoutingTrace, base: MatchedParameters, wanted: NDArray[np.float64], seeds: Sequence[int]
) -> MatchedParameters:
    """Parameters whose correlation beyond the next token gives the trace's cache hit rates."""
    small = _thin(base)
    part = by_layer(_part(trace, LRU_TOKENS), small.layer_indices)
    shape = (part.num_tokens, part.num_layers, trace.num_experts, trace.top_k)
    target = _hits(part)
    if not target:
        return normalised(base, _mixture(wanted))

    def scaled(factor: float) -> NDArray[np.float64]:
        beyond = np.minimum(wanted * factor, max(wanted))
        return _mixture(np.append(wanted[0], beyond[1:]))

    def hits(factor: float, seed: int) -> float:
        knobs = normalised(small, scaled(factor))
        return _hits(matched_trace(knobs, *shape, np.random.default_rng(seed)))

    factor = _crossing(partial(hits, seed=seeds[0]), target, _FACTOR_MAX)
    return normalised(base, scaled(_calibrated(hits, factor, target, _FACTOR_MAX, seeds)))


def _thin(base: MatchedParameters) -> MatchedParameters:
    """Parameters of a few layers from first to last, to simulate in less time."""
    layers = np.unique(np.linspace(0, len(base.layer_indices) - 1, FIT_LAYERS).astype(np.int64))
    return replace(
        base,
        relative_load=tuple(base.relative_load[i] for i in layers),
        layer_indices=tuple(base.layer_indices[i] for i in layers),
    )


def _with_domains(
    trace: RoutingTrace, base: MatchedParameters, curve: NDArray[np.float64]
) -> MatchedParameters:
    """Parameters with the share of the constant context that requests of a domain have in common."""
    constant = base.variance_shares[-1]
    if base.num_domains < 2 or constant <= 0:
        return base
    found = []
    for domain in np.unique(trace.domain_index):
        rows = np.flatnonzero(trace.domain_index == domain)
        half = rows.size // 2
        first, second = rows[:half], rows[half : 2 * half]
        apart = trace.request_index[first] != trace.request_index[second]
        if apart.any():
            picked = np.flatnonzero(apart)[:: -(-int(apart.sum()) // _PAIR_TOKENS)]
            found.append(overlap(trace.expert_ids[first[picked]], trace.expert_ids[second[picked]]))
    if not found:
        return base
    correlation = float(np.interp(np.mean(found), curve, np.linspace(0.0, 1.0, curve.size)))
    return replace(base, domain_sharing=round(min(1.0, correlation / constant), 4))


def _affinity(trace: RoutingTrace) -> float:
    pairs = trace.transitions()
    return float(mutual_information_nats(pairs).mean()) if len(pairs) else 0.0


def _hits(trace: RoutingTrace) -> float:
    """Mean hit rate of caches of two and four times top-k; 0 where no such cache is smaller than all."""
    sizes = [s for s in (2 * trace.top_k, 4 * trace.top_k) if s < trace.num_experts]
    return float(lru_hit_fraction(trace.expert_ids, trace.num_experts, sizes).mean()) if sizes else 0.0


def _calibrated(
    measure: Callable[..., float], found: float, target: float, high: float, seeds: Sequence[int]
) -> float:
    """Where a simulated measure reaches ``target`` on average of the seeds.

    ``found`` is about where it does with the first seed. How far that seed is off there is what its
    crossing is moved by.
    """
    if len(seeds) < 2:
        return found
    values = [measure(found, seed) for seed in seeds]
    offset = float(np.mean(values)) - values[0]
    low, high = found / _NEARBY, min(high, found * _NEARBY)
    return _crossing(partial(measure, seed=seeds[0]), target - offset, high, low)


def _crossing(measure: Callable[[float], float], target: float, high: float, low: float = 0.0) -> float:
    """Where an increasing measure between ``low`` and ``high`` reaches ``target``."""
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if measure(middle) < target else (low, middle)
    return 0.5 * (low + high)
