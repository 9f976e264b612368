"""Variable numbers of experts a token: by probability mass, threshold, free experts, kind of text."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from pydantic import Field

from moesim.errors import InputError
from moesim.traces.rewrite import dropped, told, weights_of
from moesim.traces.routing import RoutingTrace
from moesim.traces.transforms import transforms


@transforms.register("top_p")
@dataclass(frozen=True)
class TopP:
    """Keep the heaviest choices until they hold ``mass`` of the token's gate weight; at least one."""

    mass: Annotated[float, Field(gt=0, le=1)] = 0.8

    def apply(self, trace: RoutingTrace, rng: np.random.Generator) -> RoutingTrace:
        """Trace with fewer choices; needs gate weights."""
        weights = weights_of(trace, "top_p")
        order = np.argsort(-weights, axis=-1, kind="stable")
        ordered = np.take_along_axis(weights, order, axis=-1)
        total = ordered.sum(axis=-1, keepdims=True)
        before = np.cumsum(ordered, axis=-1) - ordered
        drop_ordered = before >= self.mass * total
        drop_ordered[..., 0] = False
        drop = np.empty_like(drop_ordered)
        np.put_along_axis(drop, order, drop_ordered, axis=-1)
        return dropped(trace, drop, f"top-p {self.mass}")


@transforms.register("skip_threshold")
@dataclass(frozen=True)
class SkipThreshold:
    """Skip choices whose weight is below ``ratio`` times the token's heaviest."""

    ratio: Annotated[float, Field(ge=0, le=1)] = 0.3

    def apply(self, trace: RoutingTrace, rng: np.random.Generator) -> RoutingTrace:
        """Trace with fewer choices; needs gate weights."""
        weights = weights_of(trace, "skip_threshold")
        drop = weights < self.ratio * weights.max(axis=-1, keepdims=True)
        return dropped(trace, drop, f"choices below {self.ratio} of the heaviest skipped")


@transforms.register("null_experts")
@dataclass(frozen=True)
class NullExperts:
    """The last ``num_null`` experts of every layer cost nothing (LongCat's zero-computation experts)."""

    num_null: Annotated[int, Field(ge=1)]

    def apply(self, trace: RoutingTrace, rng: np.random.Generator) -> RoutingTrace:
        """Trace of the other experts; choices of free ones are empty slots."""
        real = trace.num_experts - self.num_null
        if real < trace.top_k:
            accepted = f"1 to {trace.num_experts - trace.top_k}"
            raise InputError.at("num_null", self.num_null, accepted)
        made = dropped(trace, np.asarray(trace.expert_ids >= real), f"{self.num_null} experts cost nothing")
        return replace(made, info=replace(made.info, num_experts=real))


@transforms.register("skip_domain")
@dataclass(frozen=True)
class SkipDomain:
    """Tokens of one kind (a domain, such as a modality) use only their ``keep`` first choices."""

    domain: str
    keep: Annotated[int, Field(ge=0)] = 1

    def apply(self, trace: RoutingTrace, rng: np.random.Generator) -> RoutingTrace:
        """Trace with fewer choices for these tokens; first by gate weight where there is one."""
        if self.domain not in trace.info.domains:
            raise InputError.at("domain", self.domain, ", ".join(trace.info.domains))
        rows = trace.domain_index == trace.info.domains.index(self.domain)
        if trace.gate_weights is None:
            rank = np.broadcast_to(np.arange(trace.top_k), trace.expert_ids.shape)
        else:
            weights = weights_of(trace, "skip_domain")
            rank = np.argsort(np.argsort(-weights, axis=-1, kind="stable"), axis=-1)
        drop = (rank >= self.keep) & rows[:, None, None]
        return dropped(trace, drop, f"{self.keep} choices for {self.domain}")


@transforms.register("first_choices")
@dataclass(frozen=True)
class FirstChoices:
    """Every token keeps its ``top_k`` first choices: the what-if of fewer experts a token."""

    top_k: Annotated[int, Field(ge=1)]

    def apply(self, trace: RoutingTrace, rng: np.random.Generator) -> RoutingTrace:
        """Trace of fewer slots; first by gate weight where there is one."""
        if self.top_k > trace.top_k:
            raise InputError.at("top_k", self.top_k, f"1 to {trace.top_k}")
        weights = trace.gate_weights
        if weights is None:
            changed = replace(trace, expert_ids=trace.expert_ids[..., : self.top_k])
        else:
            order = np.argsort(-weights_of(trace, "first_choices"), axis=-1, kind="stable")[..., : self.top_k]
            changed = replace(
                trace,
                expert_ids=np.take_along_axis(trace.expert_ids, order, axis=-1),
                gate_weights=np.take_along_axis(np.asarray(weights), order, axis=-1),
            )
        return told(changed, f"first {self.top_k} choices")
