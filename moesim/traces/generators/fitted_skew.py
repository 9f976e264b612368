"""Skew, repetition and inter-layer affinity measured on one model, generated for any other.

Each token has a hidden context vector ``h`` that drifts along its request; expert ``e`` of layer
``l`` likes contexts near its own random direction ``u[l, e]``. The log-rate of the race is
``bias[l, e] + strength * (u[l, e] . h)``: the bias reproduces the popularity curve, the drift makes
neighbouring tokens choose alike, and the part of ``h`` that layers share ties layers together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from moesim.traces.description import id_dtype
from moesim.traces.generators import generators
from moesim.traces.routing import ExpertIds, RoutingTrace
from moesim.traces.synthetic import (
    CHUNK_VALUES,
    TOKENS_PER_REQUEST,
    balanced_bias,
    check_shape,
    choose,
    generated_trace,
    inclusion_targets,
    shuffled_by_layer,
)

CONTEXT_SIZE = 6
"""Fewer dimensions tie layers together more tightly; six reach the affinity of public traces."""
DEFAULT_CURVE = (
    4.31,
    4.31,
    4.13,
    3.56,
    3.06,
    2.66,
    2.36,
    2.1,
    1.84,
    1.63,
    1.46,
    1.31,
    1.19,
    1.07,
    0.97,
    0.88,
    0.79,
    0.71,
    0.64,
    0.57,
    0.49,
    0.41,
    0.32,
    0.19,
)
DEFAULT_EXPERTS = 64
_PILOT_TOKENS = 384
_BIAS_ROUNDS = 12


@generators.register("fitted_skew")
@dataclass(frozen=True)
class FittedSkew:
    """Popularity curve, token-to-token repetition and inter-layer affinity of a measured trace.

    The defaults were fitted to public traces of a DeepSeek-V2-Lite-shaped model (26 layers, 64
    experts, top-6; mean of four tasks). :func:`moesim.traces.fit.fit_skew` measures them on any
    trace. That the skew of one model holds for a model of another size is an assumption; fewer experts
    are taken as groups of the fitted ones, whose loads even out (:func:`stretched_curve`).

    Attributes
    ----------
    load_curve : tuple of float
        Load over mean load from the most to the least used expert, at the ranks of
        :func:`curve_ranks`. [-]
    context_strength : float
        How strongly a token's context decides its experts; 0 makes tokens independent. [-]
    persistence : float
        Correlation of the contexts of neighbouring tokens of a request. [-]
    layer_sharing : float
        Share of the context's variance that all layers have in common. [-]
    curve_experts : int
        Experts of the model that the curve was measured on. [-]
    """

    load_curve: tuple[Annotated[float, Field(gt=0)], ...] = DEFAULT_CURVE
    context_strength: Annotated[float, Field(ge=0, le=8)] = 5.0
    persistence: Annotated[float, Field(ge=0, lt=1)] = 0.35
    layer_sharing: Annotated[float, Field(ge=0, le=1)] = 1.0
    curve_experts: Annotated[int, Field(ge=1)] = DEFAULT_EXPERTS

    def generate(
        self, num_tokens: int, num_layers: int, num_experts: int, top_k: int, rng: np.random.Generator
    ) -> RoutingTrace:
        """Trace of any shape with the fitted skew."""
        check_shape(num_tokens, num_layers, num_experts, top_k)
        popularity = np.tile(
            stretched_curve(self.load_curve, num_experts, self.curve_experts), (num_layers, 1)
        )
        targets = inclusion_targets(shuffled_by_layer(popularity, rng), top_k)
        ids = self._choices(targets, num_tokens, top_k, rng)
        knobs = (
            f"context_strength={self.context_strength:.4g}, persistence={self.persistence:.4g}, "
            f"layer_sharing={self.layer_sharing:.4g}"
        )
        return generated_trace(ids, num_experts, source=f"generator fitted_skew, {knobs}")

    def _choices(
        self, targets: NDArray[np.float64], num_tokens: int, top_k: int, rng: np.random.Generator
    ) -> ExpertIds:
        layers, experts = targets.shape
        ids = np.empty((num_tokens, layers, top_k), id_dtype(experts))
        shared = drifting_context(num_tokens, self.persistence, rng)
        common, apart = np.sqrt(self.layer_sharing), np.sqrt(1.0 - self.layer_sharing)
        chunk = max(1, CHUNK_VALUES // experts)
        for layer in range(layers):
            own = drifting_context(num_tokens, self.persistence, rng)
            context = np.float32(common) * shared + np.float32(apart) * own
            likes = rng.standard_normal((CONTEXT_SIZE, experts), dtype=np.float32)
            likes *= np.float32(self.context_strength) / np.linalg.norm(likes, axis=0)
            pilot = context[:: -(-num_tokens // _PILOT_TOKENS)] @ likes
            bias = balanced_bias(targets[layer], pilot, top_k, np.exp, _BIAS_ROUNDS)
            for start in range(0, num_tokens, chunk):
                rates = np.exp(context[start : start + chunk] @ likes + bias)
                ids[start : start + chunk, layer] = choose(rates, top_k, rng)
        return ids


def curve_ranks(num_knots: int) -> NDArray[np.float64]:
    """Rank over number of experts at each knot of a load curve, ``(num_knots,)``; dense at the hot end."""
    result: NDArray[np.float64] = ((np.arange(num_knots) + 0.5) / num_knots) ** 2
    return result


def stretched_curve(
    load_curve: tuple[float, ...], num_experts: int, curve_experts: int = 0
) -> NDArray[np.float64]:
    """Popularity of ``num_experts`` experts along a curve, ``(experts,)``: mean 1, log-linear.

    A model with fewer experts than the curve's (0: as many) has coarser ones: each stands for several
    independent ones, and the spread of log loads shrinks with the root of their number. On text of one
    kind OLMoE's busiest of 64 has 2.5 to 3.0 times the mean, Mixtral's of 8 has 1.1, where the unshrunk
    curve gives 2.5 and this one 1.4 (counts of both by domain: allenai/OLMoE, scripts/routing_output).
    """
    knots = curve_ranks(len(load_curve))
    ranks = (np.arange(num_experts) + 0.5) / num_experts
    spread = min(1.0, num_experts / curve_experts) ** 0.5 if curve_experts else 1.0
    curve = np.exp(spread * np.interp(ranks, knots, np.log(load_curve)))
    result: NDArray[np.float64] = curve / curve.mean()
    return result


def drifting_context(num_tokens: int, persistence: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Unit-variance first-order autoregressive vectors along requests, ``(tokens, CONTEXT_SIZE)``."""
    requests = -(-num_tokens // TOKENS_PER_REQUEST)
    context = rng.standard_normal((TOKENS_PER_REQUEST, requests, CONTEXT_SIZE), dtype=np.float32)
    fresh = np.float32(np.sqrt(1.0 - persistence**2))
    if persistence > 0:
        for step in range(1, TOKENS_PER_REQUEST):
            context[step] = np.float32(persistence) * context[step - 1] + fresh * context[step]
    return context.swapaxes(0, 1).reshape(-1, CONTEXT_SIZE)[:num_tokens]
