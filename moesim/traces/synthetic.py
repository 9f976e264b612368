"""What all generators share: loads to weights, weights to distinct experts, ids to a trace.

Distinct experts come from an exponential race: expert ``e`` finishes after ``Exp(1) / w_e`` and the
first ``k`` are chosen (the Gumbel top-k trick without logarithms). A popular expert cannot be
chosen twice by a token, so its share of the load is below its share of the weight; weights are
therefore solved from the wanted load.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError, Problem
from moesim.traces.description import DECODE, MAX_EXPERTS, PREFILL, TraceInfo, id_dtype
from moesim.traces.routing import ExpertIds, RoutingTrace

CHUNK_VALUES = 2_000_000
"""Race times drawn together: a few megabytes."""
INCLUSION_MAX = 0.98
"""No expert is asked to be in more than this share of tokens; certainty has no finite weight."""
TOKENS_PER_REQUEST = 256
_EDGE = 2.0**-24
_SOLVER_ROUNDS = 60
_ID_BITS = 32
_STOP_ROUNDS = 2
_LOAD_MIN = 0.001


def check_shape(num_tokens: int, num_layers: int, num_experts: int, top_k: int) -> None:
    """Refuse a shape that no trace can have.

    Raises
    ------
    InputError
        Every number that is out of range.
    """
    wanted = (
        ("num_tokens", num_tokens, 1, 2**31 - 1),
        ("num_layers", num_layers, 1, MAX_EXPERTS),
        ("num_experts", num_experts, 1, MAX_EXPERTS),
        ("top_k", top_k, 1, num_experts),
    )
    problems = [
        Problem(name, f"got {got}; accepted: {low} to {high}")
        for name, got, low, high in wanted
        if not low <= got <= high
    ]
    if problems:
        raise InputError(problems, source="generator")


def inclusion_targets(popularity: NDArray[Any], top_k: int) -> NDArray[np.float64]:
    """Probability that a token chooses each expert, proportional to popularity where possible.

    Parameters
    ----------
    popularity : ndarray, ``(..., experts)``
        Positive wanted loads in any unit.
    top_k : int
        Choices a token. [-]

    Returns
    -------
    ndarray of float64, ``(..., experts)``
        Sums to ``top_k``; experts that would exceed :data:`INCLUSION_MAX` stay there and the others
        share the rest. [-]
    """
    size = popularity.shape[-1]
    ceiling = max(INCLUSION_MAX, top_k / size)
    scale = top_k / popularity.sum(axis=-1, keepdims=True)
    for _ in range(_SOLVER_ROUNDS):
        held = np.minimum(ceiling, scale * popularity)
        scale = scale * (top_k / held.sum(axis=-1, keepdims=True))
    result: NDArray[np.float64] = np.minimum(ceiling, scale * popularity)
    return result


def race_weights(inclusion: NDArray[np.float64]) -> NDArray[np.float64]:
    r"""Weights whose exponential race gives these inclusion probabilities, ``(..., experts)``. [-]

    .. math:: \pi_e \approx 1 - e^{-w_e \tau}

    where the race stops at ``tau``: exact for many experts, within a few percent for eight.
    """
    return -np.log1p(-np.clip(inclusion, _EDGE, 1.0 - _EDGE))


def choose(rates: NDArray[np.float32], top_k: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """First ``top_k`` of an exponential race, winner first, ``(..., experts)`` to ``(..., top_k)``."""
    times = rng.standard_exponential(rates.shape, dtype=np.float32)
    times /= rates
    # bits of a positive time order as the time does; with the expert below them, numpy's fast partition
    # of values stands for its slow one of indices
    keys = times.view(np.uint32).astype(np.uint64)
    keys <<= np.uint64(_ID_BITS)
    keys |= np.arange(times.shape[-1], dtype=np.uint64)
    if top_k < times.shape[-1]:
        keys.partition(top_k - 1, axis=-1)
    first = np.sort(keys[..., :top_k], axis=-1)
    return (first & np.uint64(2**_ID_BITS - 1)).astype(np.int64)


def balanced_bias(
    targets: NDArray[np.float64],
    scores: NDArray[np.float32],
    top_k: int,
    rates_of: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    rounds: int,
) -> NDArray[np.float32]:
    """Log-rates that give each expert its target load averaged over sample contexts, ``(experts,)``.

    Parameters
    ----------
    targets : ndarray, ``(experts,)``
        Inclusion probabilities that sum to ``top_k``. [-]
    scores : ndarray, ``(samples, experts)``
        Context part of the log-rates. [-]
    rates_of : function
        Race rates of log-rates, which it may write over.
    rounds : int
        Corrections of the bias, each by what the last one missed. [-]
    """
    wanted = np.log(race_weights(targets))
    bias = wanted.astype(np.float32)
    experts = targets.size
    if top_k >= experts:
        return bias
    stop = np.ones((len(scores), 1), np.float32)
    left, logs = np.empty_like(scores), np.empty_like(scores)
    for _ in range(rounds):
        rates = rates_of(np.add(scores, bias, out=logs))
        np.negative(rates, out=rates)
        for _ in range(_STOP_ROUNDS):
            # the race of each sample stops when top_k experts are expected to have finished
            np.exp(np.multiply(rates, stop, out=left), out=left)
            stop *= top_k / np.maximum(experts - left.sum(axis=1, keepdims=True), np.float32(_LOAD_MIN))
        np.exp(np.multiply(rates, stop, out=left), out=left)
        reached = 1.0 - left.mean(axis=0, dtype=np.float64)
        bias += (wanted - np.log(race_weights(reached))).astype(np.float32)
    return bias


def independent_choices(
    popularity: NDArray[np.float64], num_tokens: int, top_k: int, rng: np.random.Generator
) -> ExpertIds:
    """Experts of independent tokens, ``(layers, experts)`` popularity to ``(tokens, layers, top_k)``."""
    layers, experts = popularity.shape
    check_shape(num_tokens, layers, experts, top_k)
    rates = race_weights(inclusion_targets(popularity, top_k)).astype(np.float32)
    ids = np.empty((num_tokens, layers, top_k), id_dtype(experts))
    chunk = max(1, CHUNK_VALUES // (layers * experts))
    for start in range(0, num_tokens, chunk):
        part = ids[start : start + chunk]
        part[:] = choose(np.broadcast_to(rates, (len(part), layers, experts)), top_k, rng)
    return ids


def shuffled_by_layer(popularity: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Rows with their entries in an own random order each, ``(layers, experts)``."""
    return rng.permuted(popularity, axis=1)


def generated_trace(ids: ExpertIds, num_experts: int, *, source: str) -> RoutingTrace:
    """Ids as a trace of requests of :data:`TOKENS_PER_REQUEST`, first half prefill, second half decode."""
    tokens, layers, _ = ids.shape
    row = np.arange(tokens)
    position = (row % TOKENS_PER_REQUEST).astype(np.int32)
    return RoutingTrace(
        info=TraceInfo(
            model="synthetic",
            num_experts=num_experts,
            layer_indices=tuple(range(layers)),
            source=source,
            domains=("synthetic",),
            evidence="assumed",
        ),
        expert_ids=ids,
        request_index=(row // TOKENS_PER_REQUEST).astype(np.int32),
        position=position,
        step_index=position,
        phase=np.where(position < TOKENS_PER_REQUEST // 2, PREFILL, DECODE).astype(np.uint8),
        domain_index=np.zeros(tokens, np.uint8),
    )
