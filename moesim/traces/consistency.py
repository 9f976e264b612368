"""Matched routing for models of which only a published skew and local consistency are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from statistics import NormalDist

import numpy as np

from moesim.errors import InputError
from moesim.traces.locality import segment_routing_performance
from moesim.traces.matched import PERSISTENCES, MatchedParameters, matched_trace, normalised
from moesim.traces.routing import RoutingTrace
from moesim.traces.statistics import Floats

STRENGTH_MAX = 16.0
_SPREAD_MAX = 12.0
_HALVINGS = 50
_FIT_HALVINGS = 7
_RATE_RANGE = (-40.0, 40.0)
_WHITE = np.array([float(p == 0.0) for p in PERSISTENCES])
_LASTING = np.array([float(p == 0.995) for p in PERSISTENCES])


def load_of_deviation(num_experts: int, top_k: int, deviation: float) -> Floats:
    """Relative load whose shares of tokens have a given standard deviation, ``(num_experts,)``. [-]

    Log-normal rates of an exponential race, so that no expert is chosen by more than every token.

    Parameters
    ----------
    deviation : float
        Of the share of tokens that chose an expert, over experts; their mean is ``top_k / num_experts``.

    Raises
    ------
    InputError
        More than any choice of ``top_k`` experts a token allows.
    """
    mean = top_k / num_experts
    if not 0 <= deviation < np.sqrt(mean * (1 - mean)):
        raise InputError.at("deviation", deviation, f"0 to {np.sqrt(mean * (1 - mean)):.3g}")
    normal = NormalDist()
    ranks = np.array([normal.inv_cdf((i + 0.5) / num_experts) for i in range(num_experts)])

    def shares(spread: float) -> Floats:
        low, high = _RATE_RANGE
        chosen = np.zeros(num_experts)
        for _ in range(_HALVINGS):
            middle = 0.5 * (low + high)
            chosen = -np.expm1(-np.exp(spread * ranks + middle))
            low, high = (middle, high) if chosen.mean() < mean else (low, middle)
        return chosen

    low, high = 0.0, _SPREAD_MAX
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if shares(middle).std() < deviation else (low, middle)
    found = shares(low)
    return np.asarray(found / found.mean(), np.float64)


def with_skew(
    parameters: MatchedParameters,
    shape: tuple[int, int, int],
    deviation: float,
    rng: np.random.Generator,
    *,
    request_tokens: int = 512,
) -> MatchedParameters:
    """Parameters with the load of another model and everything else as they are.

    Parameters
    ----------
    shape : tuple of int
        Layers, experts and choices of the model.
    deviation : float
        See :func:`load_of_deviation`. Which expert is hot differs between layers.
    """
    layers, experts, top_k = shape
    load = load_of_deviation(experts, top_k, deviation)
    rows = tuple(tuple(rng.permutation(load).tolist()) for _ in range(layers))
    return replace(
        parameters,
        top_k=top_k,
        layer_indices=tuple(range(layers)),
        relative_load=rows,
        request_tokens=request_tokens,
        num_domains=1,
    )


def with_consistency(
    parameters: MatchedParameters, target: float, num_tokens: int, seed: int, *, segment_tokens: int = 16
) -> MatchedParameters:
    """Parameters of a segment routing performance, or of what comes closest to it.

    One knob moves the context from white noise (0) over the mixture it has (1) to one that lasts some
    hundred tokens (2). Where that does not suffice the context's strength grows.

    Parameters
    ----------
    target : float
        SRP(``segment_tokens``) of the model. [-]
    num_tokens : int
        Length of the simulated traces. [tokens]
    """

    def reached(knobs: MatchedParameters) -> float:
        return segment_routing_performance(trace_of(knobs, num_tokens, seed), segment_tokens)[1]

    def lasting(knob: float) -> MatchedParameters:
        own = np.array(parameters.variance_shares)
        low, high = (_WHITE, own) if knob < 1 else (own, _LASTING)
        return normalised(parameters, low + (knob - int(knob)) * (high - low) if knob < 2 else _LASTING)

    def stronger(strength: float) -> MatchedParameters:
        return replace(lasting(2.0), context_strength=strength)

    if reached(lasting(2.0)) >= target:
        return lasting(_reaching(lambda x: reached(lasting(x)), target, 0.0, 2.0))
    return stronger(
        _reaching(lambda x: reached(stronger(x)), target, parameters.context_strength, STRENGTH_MAX)
    )


def _reaching(measure: Callable[[float], float], target: float, low: float, high: float) -> float:
    """Where an increasing measure reaches ``target``."""
    for _ in range(_FIT_HALVINGS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if measure(middle) < target else (low, middle)
    return 0.5 * (low + high)


def trace_of(parameters: MatchedParameters, num_tokens: int, seed: int) -> RoutingTrace:
    """Trace of the parameters' own shape."""
    layers, experts = parameters.load.shape
    rng = np.random.default_rng(seed)
    return matched_trace(parameters, num_tokens, layers, experts, parameters.top_k, rng)
