"""Fitting the ``fitted_skew`` generator to a measured trace.

The popularity curve is read off directly. The two correlations, mutual information between
neighbouring layers and repetition between neighbouring tokens, are matched by simulation at the
trace's own shape and length, so that finite-sample bias is the same on both sides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from moesim.traces.generators.fitted_skew import FittedSkew, curve_ranks
from moesim.traces.routing import RoutingTrace
from moesim.traces.statistics import (
    independent_repeat_fraction,
    mutual_information_nats,
    repeat_fraction,
)

CURVE_KNOTS = 24
FIT_TOKENS = 4096
FIT_LAYERS = 6
STRENGTH_MAX = 8.0
PERSISTENCE_MAX = 0.995
LAYER_SHARINGS = (1.0, 0.75, 0.5, 0.3, 0.15)
_HALVINGS = 8
_AT_LIMIT = 0.99
_LOAD_MIN = 0.001
"""Relative load given to experts that were never chosen."""


def fit_skew(trace: RoutingTrace, rng: np.random.Generator) -> FittedSkew:
    """Generator whose traces have this trace's load curve, repetition and inter-layer affinity.

    Parameters
    ----------
    trace : RoutingTrace
        Measured trace; its first :data:`FIT_TOKENS` tokens and :data:`FIT_LAYERS` evenly spaced
        pairs of layers set the correlations, all of it sets the curve.
    rng : numpy.random.Generator
        For the simulations of the fit.

    Notes
    -----
    The context strength is the smallest that explains the affinity with all layers sharing one
    context; only where no persistence then explains the repetition, layers share less.
    """
    part = trace.window(0, min(FIT_TOKENS, trace.num_tokens))
    base = FittedSkew(load_curve=load_curve(trace), curve_experts=trace.num_experts)
    seed = int(rng.integers(2**63))

    layers = min(FIT_LAYERS, part.num_layers)

    def simulated(generator: FittedSkew) -> tuple[float, float]:
        made = generator.generate(
            part.num_tokens, layers, part.num_experts, part.top_k, np.random.default_rng(seed)
        )
        return correlations(made)

    affinity, repetition = correlations(part)
    for sharing in LAYER_SHARINGS:
        base = replace(base, layer_sharing=sharing)
        base = _matched(base, "context_strength", STRENGTH_MAX, affinity, lambda g: simulated(g)[0])
        base = _matched(base, "persistence", PERSISTENCE_MAX, repetition, lambda g: simulated(g)[1])
        explained = base.persistence < PERSISTENCE_MAX * _AT_LIMIT
        if explained or base.context_strength > STRENGTH_MAX * _AT_LIMIT:
            break
    return base


def _matched(
    generator: FittedSkew, knob: str, high: float, target: float, measure: Callable[[FittedSkew], float]
) -> FittedSkew:
    """Generator with ``knob`` (of ``[0, high]``) at which an increasing measure reaches ``target``."""
    low = 0.0
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        if measure(_with(generator, knob, middle)) < target:
            low = middle
        else:
            high = middle
    return _with(generator, knob, 0.5 * (low + high))


def _with(generator: FittedSkew, knob: str, value: float) -> FittedSkew:
    changed: Any = {knob: value}
    return replace(generator, **changed)


def load_curve(trace: RoutingTrace) -> tuple[float, ...]:
    """Load over mean load by rank, averaged over layers and sampled at :data:`CURVE_KNOTS` ranks."""
    counts = trace.counts().astype(np.float64)
    ordered = -np.sort(-counts, axis=1)
    relative = (ordered / ordered.mean(axis=1, keepdims=True)).mean(axis=0)
    ranks = (np.arange(relative.size) + 0.5) / relative.size
    curve = np.exp(np.interp(curve_ranks(CURVE_KNOTS), ranks, np.log(np.maximum(relative, _LOAD_MIN))))
    return tuple(round(float(v), 4) for v in curve)


def correlations(trace: RoutingTrace) -> tuple[float, float]:
    """Mean mutual information of neighbouring layers [nat] and mean excess repeat fraction [-]."""
    independent = independent_repeat_fraction(trace.counts(), trace.num_tokens)
    excess = float((repeat_fraction(trace) - independent).mean())
    pairs = trace.transitions()
    return (float(mutual_information_nats(pairs).mean()) if len(pairs) else 0.0), excess
