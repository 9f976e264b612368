"""Fewer experts to choose from: groups, pruned experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from moesim.errors import InputError
from moesim.traces.rewrite import dropped, redrawn
from moesim.traces.routing import RoutingTrace, count_experts
from moesim.traces.transforms import transforms


@transforms.register("group_limited")
@dataclass(frozen=True)
class GroupLimited:
    """Every token may use experts of at most ``top_groups`` of ``num_groups`` contiguous groups.

    The groups that hold most of a token's weight (or choices) stay; choices in others are drawn anew
    among the experts of the groups that stay, by their load. The router's scores of experts it did not
    choose are not in a trace, so this is an assumption.
    """

    num_groups: Annotated[int, Field(ge=1)] = 8
    top_groups: Annotated[int, Field(ge=1)] = 4

    def apply(self, trace: RoutingTrace, rng: np.random.Generator) -> RoutingTrace:
        """Trace of group-limited routing."""
        experts = trace.num_experts
        if experts % self.num_groups or self.top_groups > self.num_groups:
            raise InputError.at(
                "num_groups, top_groups",
                (self.num_groups, self.top_groups),
                f"a divisor of {experts}, not more",
            )
        each = experts // self.num_groups
        if self.top_groups * each < trace.top_k:
            raise InputError.at("top_groups", self.top_groups, f"room for {trace.top_k} experts")
        ids = np.asarray(trace.expert_ids, np.int64)
        group = np.where(ids < experts, ids // each, self.num_groups)
        weight = np.ones(ids.shape) if trace.gate_weights is None else trace.gate_weights.astype(np.float64)
        score = np.zeros((*ids.shape[:2], self.num_groups + 1))
        token, layer = np.ogrid[: ids.shape[0], : ids.shape[1]]
        for slot in range(trace.top_k):
            score[token, layer, group[..., slot]] += weight[..., slot]
        order = np.argsort(-score[..., : self.num_groups], axis=-1, kind="stable")[..., : self.top_groups]
        stays = np.zeros(score.shape, np.bool_)
        np.put_along_axis(stays, order, True, axis=-1)
        away = ~np.take_along_axis(stays, group, axis=-1) & (ids < experts)
        allowed = np.repeat(stays[..., : self.num_groups], each, axis=-1)
        how = f"limited to {self.top_groups} of {self.num_groups} groups"
        return redrawn(trace, away, allowed, how, rng)


@transforms.register("prune_experts")
@dataclass(frozen=True)
class PruneExperts:
    """Keep the ``keep`` most used experts of every layer, as counted on one ``domain`` or on all tokens.

    Choices of the others are drawn anew among the kept ones by load (``refill``), or dropped.
    """

    keep: Annotated[int, Field(ge=1)]
    domain: str | None = None
    refill: bool = True

    def apply(self, trace: RoutingTrace, rng: np.random.Generator) -> RoutingTrace:
        """Trace that uses ``keep`` experts of a layer; their numbers stay."""
        if not trace.top_k <= self.keep <= trace.num_experts:
            raise InputError.at("keep", self.keep, f"{trace.top_k} to {trace.num_experts}")
        seen = trace if self.domain is None else trace.select(domain=self.domain)
        counts = count_experts(seen.expert_ids, trace.num_experts)
        kept = np.zeros(counts.shape, np.bool_)
        order = np.argsort(-counts, axis=1, kind="stable")[:, : self.keep]
        np.put_along_axis(kept, order, True, axis=1)
        ids = np.minimum(trace.expert_ids, trace.num_experts).astype(np.int64)
        padded = np.concatenate([kept, np.ones((trace.num_layers, 1), np.bool_)], axis=1)
        away = ~padded[np.arange(trace.num_layers)[:, None], ids]
        how = f"{self.keep} of {trace.num_experts} experts kept" + (
            f" by their use on {self.domain}" if self.domain else ""
        )
        return redrawn(trace, away, kept[None], how, rng) if self.refill else dropped(trace, away, how)
