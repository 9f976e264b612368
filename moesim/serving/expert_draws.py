"""Experts of random steps: how the tokens of an iteration spread over experts, ranks and links."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.evidence import rng_for
from moesim.kernels.histogram import TILE_ROWS, ExpertLoad
from moesim.model.spec import MoeSpec
from moesim.network.traffic import PortTokens, routed_traffic
from moesim.parallel.plan import Plan
from moesim.traces.generators import generators
from moesim.traces.rewrite import thinned

BANK_TOKENS = 4096
"""Tokens that are routed once; a larger iteration meets some of them again."""
BANK_LAYERS = 4
"""Independent layers that a step's load is averaged over."""

Loads = NDArray[np.float64]


@dataclass(frozen=True)
class Generator:
    """A routing generator by name, with its parameters.

    Attributes
    ----------
    name : str
        By default the skew of recorded traffic: uniform routing would touch more experts.
    params : tuple of (str, value)
    """

    name: str = "matched"
    params: tuple[tuple[str, Hashable], ...] = ()

    @classmethod
    def of(cls, name: str, params: Mapping[str, Any]) -> Generator:
        """Generator with parameters as a scenario gives them."""
        fixed = {key: tuple(value) if isinstance(value, list) else value for key, value in params.items()}
        return cls(name, tuple(sorted(fixed.items())))


@dataclass(frozen=True)
class ExpertDraws:
    """Routed tokens of one MoE layer under a plan.

    Attributes
    ----------
    moe : MoeSpec
    plan : Plan
    domain : ndarray of int, ``(rank,)``
        Scale-up domain of each rank of a stage.
    generator : Generator
        Of the bank.
    """

    moe: MoeSpec
    plan: Plan
    domain: NDArray[np.int64]
    generator: Generator
    _rows: NDArray[np.int64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        order = rng_for(0, "serving/draws").permutation(BANK_TOKENS)
        object.__setattr__(self, "_rows", order)

    def loads(self, tokens: NDArray[np.float64]) -> ExpertLoad:
        """Load of every expert-parallel rank, each ``(layer, ep rank, sample)``.

        Parameters
        ----------
        tokens : ndarray, ``(sample,)``
            Tokens of all attention ranks together; rounded, at least one.
        """
        each = [self._load(count) for count in _whole(tokens)]
        return ExpertLoad(
            np.stack([load.rows for load in each], axis=-1),
            np.stack([load.touched for load in each], axis=-1),
            {b: np.stack([load.padded_rows[b] for load in each], axis=-1) for b in TILE_ROWS},
        )

    def ports(self, tokens: float) -> PortTokens:
        """Tokens through the ports of each rank in a dispatch, ``(layer, rank)``; one copy a rank."""
        count = int(_whole(np.array([tokens]))[0])
        used = min(count, BANK_TOKENS // 2)
        ids = self._bank[self._rows[:used]]
        group = np.arange(used) % self.plan.attention_dp
        source = group * self.plan.tp + (np.arange(used) // self.plan.attention_dp) % self.plan.tp
        per_rank = self.moe.num_experts // self.plan.ep
        columns = np.arange(self.plan.moe_tp)
        destination = (ids // per_rank)[..., None] * self.plan.moe_tp + columns
        destination[ids < 0] = -1
        ports = routed_traffic(source, destination.reshape(*ids.shape[:2], -1), self.domain, "rank").ports()
        scale = count / used
        return PortTokens(
            ports.scale_up_out * scale,
            ports.scale_up_in * scale,
            ports.scale_out_out * scale,
            ports.scale_out_in * scale,
        )

    @property
    def _bank(self) -> NDArray[np.int64]:
        moe = self.moe
        return _bank(self.generator, moe.num_experts, moe.top_k, moe.mean_active_experts)

    def _load(self, count: int) -> ExpertLoad:
        used = min(count, BANK_TOKENS)
        ids, experts = self._bank[self._rows[:used]], self.moe.num_experts
        flat = ids + (np.arange(BANK_LAYERS) * experts)[:, None]
        counts = np.bincount(flat[ids >= 0], minlength=BANK_LAYERS * experts).reshape(BANK_LAYERS, experts)
        if count > used:
            counts = np.rint(counts * (count / used)).astype(np.int64)
        return ExpertLoad.of(counts.reshape(BANK_LAYERS, self.plan.ep, -1))


def with_shared(load: ExpertLoad, tokens: NDArray[np.float64]) -> ExpertLoad:
    """The load of ranks that run shared experts as one more routed one that every token chooses."""
    padded = {b: rows + np.ceil(tokens / b) * b for b, rows in load.padded_rows.items()}
    return ExpertLoad(load.rows + tokens, load.touched + 1, padded)


def _whole(tokens: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.maximum(np.rint(tokens), 1).astype(np.int64)


@lru_cache(maxsize=32)
def _bank(generator: Generator, num_experts: int, top_k: int, mean: float | None) -> NDArray[np.int64]:
    """Experts of random tokens, ``(token, layer, choice)``; -1 where fewer than ``top_k`` work for one."""
    made = generators.build(generator.name, dict(generator.params), field="routing")
    rng = rng_for(0, "serving/bank")
    trace = made.generate(BANK_TOKENS, BANK_LAYERS, num_experts, top_k, rng)
    if mean is not None:
        trace = thinned(trace, mean, rng)
    ids = np.asarray(trace.expert_ids).astype(np.int64)
    return np.where(ids == trace.empty_slot, -1, ids)
