"""A model on devices under an engine: how long its iterations take and how much cache it has."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InfeasibleError, InputError, Problem
from moesim.hardware.schema import Cluster
from moesim.memory.ledger import Occupancy, ledger
from moesim.model import Dtypes, ModelSpec
from moesim.network.fabric import Fabric
from moesim.parallel.plan import Plan
from moesim.parallel.plan import check as check_plan
from moesim.serving.engine_cost import engine_cost
from moesim.serving.profiles import Profile
from moesim.serving.step_costs import StepCosts, Term
from moesim.serving.step_times import StepShape
from moesim.serving.tabulated import ExactParts, Parts, TabulatedParts
from moesim.units import GB

Floats = NDArray[np.float64]

PROBE_TOKENS = 8192
ROUTING = "matched"
"""Experts are drawn with the skew of recorded traffic: uniform routing would touch more of them."""


@dataclass(frozen=True)
class Deployment:
    """One instance of a service.

    Attributes
    ----------
    model, plan, dtypes
        What runs, where and in which formats.
    cluster : Cluster
        Its first ``plan.num_devices`` devices.
    profile : Profile
        The engine.
    max_num_batched_tokens, max_num_seqs : int or None
        Limits of an iteration; None: the engine's defaults.
    generator : str
        Routing generator of the experts that tokens choose.
    redundant_experts : int
        Copies of a layer beside one of each expert, over all ranks: they take memory from the cache.
    """

    model: ModelSpec
    plan: Plan
    dtypes: Dtypes
    cluster: Cluster
    profile: Profile
    max_num_batched_tokens: int | None = None
    max_num_seqs: int | None = None
    generator: str = ROUTING
    redundant_experts: int = 0

    def __post_init__(self) -> None:
        slots = self.model.num_experts + self.redundant_experts
        check_plan(self.plan, self.model, slots, self.cluster.num_devices)
        if self.model.has_encoder:
            raise InputError([Problem("model", "an encoder-decoder model cannot be served by these engines")])

    @property
    def token_budget(self) -> int:
        """Most new tokens of an iteration. [tokens]"""
        return self.max_num_batched_tokens or self.profile.max_num_batched_tokens

    @property
    def num_ranks(self) -> int:
        """Ranks of the clock: attention ranks of a stage, once for each batch that is in the pipeline. [-]"""
        return self.plan.attention_dp * self.plan.pp

    @property
    def sequence_limit(self) -> int:
        """Most sequences of a rank; those of an engine are spread over the batches in its pipeline."""
        return -(-(self.max_num_seqs or self.profile.max_num_seqs) // self.plan.pp)

    @property
    def drafts(self) -> int:
        """Draft tokens that a decoding sequence brings to a step. [tokens]"""
        has_layers = self.model.num_mtp_layers > 0
        return self.profile.speculation.drafts(self.plan.attention_dp) if has_layers else 0

    @property
    def tokens_per_step(self) -> float:
        """Mean tokens that a sequence gains in a decode step. [tokens]"""
        return self.profile.speculation.tokens_per_step(self.drafts)

    @cached_property
    def costs(self) -> StepCosts:
        """Prices of the parts of an iteration."""
        device = self.cluster.node.device
        return StepCosts(
            self.model,
            self.plan,
            self.dtypes,
            engine_cost(device, self.profile.kernels),
            Fabric.of(self.cluster, self.plan.num_devices),
            self.profile.kernels,
            self.generator,
            self.redundant_experts,
        )

    def step_times(self, tier: Literal["exact", "table"] = "table") -> DeploymentTimes:
        """Iteration times, priced one by one or from tables that are filled once."""
        return self._tabulated if tier == "table" else DeploymentTimes(self, self._exact)

    @cached_property
    def _exact(self) -> ExactParts:
        return ExactParts(self.costs, 1.0 + self.drafts, self.profile.graph_batches[-1])

    @cached_property
    def _tabulated(self) -> DeploymentTimes:
        parts = TabulatedParts(
            self._exact,
            max_tokens=2 * self.token_budget,
            num_groups=self.plan.attention_dp,
            graph_batches=self.profile.graph_batches,
            drafts=self.drafts > 0,
        )
        return DeploymentTimes(self, parts)

    def cache_tokens(self) -> int:
        """Tokens of KV cache of one rank of the clock, beside weights and buffers. [tokens]

        Raises
        ------
        InfeasibleError
            The weights leave no room.
        """
        capacity = self.cluster.node.device.main_memory.capacity_bytes
        empty, full = (self._resident_bytes(n, capacity) for n in (0, PROBE_TOKENS))
        room = self.profile.memory_fraction * capacity - empty
        per_token = (full - empty) / PROBE_TOKENS
        if room < per_token:
            raise self._no_room(empty, capacity)
        return int(room / per_token) // self.plan.pp if per_token > 0 else int(np.iinfo(np.int64).max)

    def cache_bytes_per_token(self) -> float:
        """Cache of one more token on one rank, over all layers. [bytes]"""
        capacity = self.cluster.node.device.main_memory.capacity_bytes
        empty, full = (self._resident_bytes(n, capacity) for n in (0, PROBE_TOKENS))
        return (full - empty) / PROBE_TOKENS

    def _no_room(self, need_bytes: float, capacity_bytes: float) -> InfeasibleError:
        have_bytes = self.profile.memory_fraction * capacity_bytes
        devices = self.plan.num_devices
        message = (
            f"{self.model.name}: weights and buffers need {need_bytes / GB:.1f} GB of each device, "
            f"{have_bytes / GB:.1f} GB are there; more devices than {devices} or a narrower format would fit"
        )
        return InfeasibleError(message)

    def _resident_bytes(self, context_tokens: int, capacity_bytes: float) -> float:
        """Weights, buffers and one sequence of so many tokens on the fullest rank."""
        occupancy = Occupancy(
            float(context_tokens > 0), context_tokens, self.token_budget, self.redundant_experts
        )
        book = ledger(
            self.model,
            self.plan,
            self.dtypes,
            occupancy,
            capacity_bytes=capacity_bytes,
            reserved_fraction=0.0,
        )
        return float(book.need_bytes.max())


@dataclass(frozen=True)
class DeploymentTimes:
    """Iteration times of a deployment, put together from its parts.

    Attributes
    ----------
    deployment : Deployment
    parts : Parts
        Exact, or from tables.
    """

    deployment: Deployment
    parts: Parts

    @property
    def num_ranks(self) -> int:
        """Ranks of the shapes that are understood."""
        return self.deployment.num_ranks

    def seconds(self, shapes: StepShape) -> Floats:
        """Device time of each iteration, ``(sample,)``. [s]

        In a pipeline as many batches are at work as it has stages; they follow each other in order, so that
        a round takes what the slowest needs for all stages, each as long as the largest.
        """
        plan, layers = self.deployment.plan, self.deployment.model.num_layers
        if plan.pp == 1:
            return self._batch_s(shapes)
        uneven = plan.pp * -(-layers // plan.pp) / layers
        groups = np.split(np.arange(self.num_ranks), plan.pp)
        each = [self._batch_s(shapes.of_ranks(group)) for group in groups]
        return np.asarray(uneven * np.max(each, axis=0))

    def _batch_s(self, shapes: StepShape) -> Floats:
        """Device time of the batch of each stage's ranks, ``(sample,)``. [s]

        Ranks work side by side and meet at the experts, so the slowest counts. Where no captured graph
        covers an iteration, it takes no less than launching it.
        """
        rows = shapes.num_decodes + shapes.num_prefills
        own = self.parts.tokens(self._padded(shapes))
        own = np.where(shapes.new_tokens > 0, own, 0.0)
        own = own + self.parts.decode(shapes.num_decodes, shapes.decode_context)
        own = own + self.parts.prefill(shapes.prefill_tokens, shapes.prefill_keys) + self.parts.head(rows)
        device = own.max(axis=1)
        if self.deployment.model.num_experts:
            device = device + self.parts.stage(self._padded(shapes).sum(axis=1))
        if self.deployment.drafts:
            decodes = shapes.num_decodes.max(axis=1)
            passes = self.deployment.drafts * self.parts.draft(np.maximum(decodes, 1.0))
            device = device + np.where(decodes > 0, passes, 0.0)
        launching_s = self.deployment.profile.host.eager_layer_s * self.deployment.model.num_layers
        return np.asarray(np.where(self._is_eager(shapes), np.maximum(device, launching_s), device))

    def overhead(self, shapes: StepShape) -> Floats:
        """Exposed host time of each iteration, ``(sample,)``. [s]"""
        host = self.deployment.profile.host
        rows = (shapes.num_decodes + shapes.num_prefills).max(axis=1)
        return np.asarray(host.iteration_s + host.sequence_s * rows)

    def terms(self, shapes: StepShape) -> tuple[Term, ...]:
        """What decode iterations are made of, each ``(sample,)``; all ranks alike."""
        costs, ranks = self.deployment.costs, self.deployment.plan.attention_dp
        tokens = self._padded(shapes).max(axis=1)
        decodes = shapes.num_decodes.max(axis=1)
        context = shapes.decode_context.max(axis=1)
        return (
            *costs.by_tokens(tokens, graph_tokens=self.deployment.profile.graph_batches[-1]),
            *costs.by_stage_tokens(tokens * ranks),
            *costs.decode(decodes, context, shapes.tokens_per_decode),
            *costs.head(decodes),
        )

    def _padded(self, shapes: StepShape) -> Floats:
        """New tokens of each rank, a decode batch padded to the next captured graph."""
        buckets = np.asarray(self.deployment.profile.graph_batches, dtype=np.float64)
        at = np.searchsorted(buckets, shapes.num_decodes)
        bucket = buckets[np.minimum(at, len(buckets) - 1)]
        covered = (shapes.prefill_tokens == 0) & (shapes.num_decodes > 0) & (at < len(buckets))
        return np.where(covered, bucket * shapes.tokens_per_decode, shapes.new_tokens)

    def _is_eager(self, shapes: StepShape) -> NDArray[np.bool_]:
        most = self.deployment.profile.graph_batches[-1]
        return np.asarray(((shapes.prefill_tokens > 0) | (shapes.num_decodes > most)).any(axis=1))
