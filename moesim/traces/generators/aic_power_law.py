"""The power law by which AIConfigurator makes expert loads, for comparison with what routers do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from moesim.traces.description import id_dtype
from moesim.traces.generators import generators
from moesim.traces.routing import RoutingTrace
from moesim.traces.synthetic import check_shape, generated_trace

_FEW_TOKENS = 2
_LOW_RANGE = (0.01, 2.0)
_TOP_FRACTION = 0.8


@generators.register("aic_power_law")
@dataclass(frozen=True)
class AicPowerLaw:
    r"""Loads drawn from a density :math:`\propto x^{-\alpha}` and dealt to tokens without repetition.

    As in ai-dynamo/aiconfigurator (``collector/helper.py``): ``x`` lies in ``[1, 0.8 * tokens]``, is
    scaled to ``tokens * top_k`` choices, rounded, and capped at one choice a token; what is then
    missing or too much is spread evenly. Its defaults are 1.01 for DeepSeek-like models, 1.2 for
    plain ones, 0.6 with load balancing. Dealing removes all relation between tokens and layers.
    ``hottest_first_ranks`` moves the hottest of so many contiguous ranks to the front; 0 leaves it.
    """

    alpha: Annotated[float, Field(ge=0, le=8)] = 1.01
    hottest_first_ranks: Annotated[int, Field(ge=0)] = 0

    def generate(
        self, num_tokens: int, num_layers: int, num_experts: int, top_k: int, rng: np.random.Generator
    ) -> RoutingTrace:
        """Trace with power-law loads in every layer."""
        check_shape(num_tokens, num_layers, num_experts, top_k)
        ids = np.empty((num_tokens, num_layers, top_k), id_dtype(num_experts))
        for layer in range(num_layers):
            counts = power_law_counts(num_tokens, num_experts, top_k, self.alpha, rng)
            order = hottest_first(counts, self.hottest_first_ranks)
            ids[:, layer] = dealt(counts[order], num_tokens, top_k, rng)
        source = f"generator aic_power_law, alpha={self.alpha}"
        return generated_trace(ids, num_experts, source=source)


def power_law_counts(
    num_tokens: int, num_experts: int, top_k: int, alpha: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Tokens of each expert: sums to ``num_tokens * top_k``, none above ``num_tokens``, ``(experts,)``."""
    top = _TOP_FRACTION * num_tokens
    low, high = (1.0, top) if top > _FEW_TOKENS else _LOW_RANGE
    drawn = rng.random(num_experts)
    power = 1.0 - alpha
    if abs(power) < np.finfo(np.float32).eps:
        load = low * (high / low) ** drawn
    else:
        load = (drawn * (high**power - low**power) + low**power) ** (1.0 / power)
    wanted = num_tokens * top_k
    counts = np.minimum(np.rint(load / load.sum() * wanted), num_tokens).astype(np.int64)
    while counts.sum() != wanted:
        missing = int(wanted - counts.sum())
        free = np.flatnonzero(counts < num_tokens) if missing > 0 else np.flatnonzero(counts > 0)
        step, part = (1 if missing > 0 else -1), free[: abs(missing)]
        each = max(1, abs(missing) // free.size)
        counts[part] = np.clip(counts[part] + step * each, 0, num_tokens)
    return np.asarray(counts, np.int64)


def hottest_first(counts: NDArray[np.int64], num_ranks: int) -> NDArray[np.int64]:
    """Order of experts in which the hottest contiguous rank changes places with the first."""
    order = np.arange(counts.size)
    if num_ranks < 2 or counts.size % num_ranks:
        return order
    by_rank = order.reshape(num_ranks, -1)
    hottest = int(counts.reshape(num_ranks, -1).sum(axis=1).argmax())
    by_rank[[0, hottest]] = by_rank[[hottest, 0]]
    return np.asarray(by_rank.ravel(), np.int64)


def dealt(
    counts: NDArray[np.int64], num_tokens: int, top_k: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Choices of tokens with exactly these counts, none twice in a token, ``(tokens, top_k)``.

    Copies of an expert lie next to each other and are dealt in turn to all tokens, so that no token
    gets two of them.
    """
    experts = rng.permutation(counts.size)
    cards = np.repeat(experts, counts[experts])
    return np.asarray(cards.reshape(top_k, num_tokens).T[rng.permutation(num_tokens)], np.int64)
