"""A model on devices under an engine: how long its iterations take and how much cache it has."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InfeasibleError, InputError, Problem
from moesim.hardware.schema import Cluster
from moesim.memory.ledger import Occupancy, ledger
from moesim.model import Dtypes, ModelSpec
from moesim.network.fabric import Communication, Fabric
from moesim.network.faults import Faults
from moesim.parallel.plan import Plan
from moesim.parallel.plan import check as check_plan
from moesim.serving.away import ExpertsAway
from moesim.serving.drafting import Drafting
from moesim.serving.engine_cost import engine_cost
from moesim.serving.expert_draws import Generator
from moesim.serving.one_launch import Spread
from moesim.serving.overlapped import layers_s
from moesim.serving.profiles import Profile
from moesim.serving.step_costs import COMBINE, DISPATCH, EXPERTS, StepCosts, Term, total
from moesim.serving.step_times import StepShape
from moesim.serving.tabulated import BATCHES, DRAFT_CONTEXT, ExactParts, Parts, TabulatedParts, along
from moesim.steps.overlap import Overlap
from moesim.units import GB

Floats = NDArray[np.float64]

PROBE_TOKENS = 8192
ROUTED = "routed experts"
"""Part of the memory ledger."""
AWAY = "experts outside the device"


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
    generator : Generator
        Of the experts that tokens choose.
    redundant_experts : int
        Copies of a layer beside one of each expert, over all ranks: they take memory from the cache.
    overlap : Overlap, optional
        How iterations of enough tokens are cut into parts whose exchanges run beside each other's work.
    communication : Communication, optional
        Which algorithms move the bytes.
    faults : Faults, optional
        What is slow or dead of the devices and links in use.
    away : ExpertsAway, optional
        Experts that are not on the device; None: all are.
    """

    model: ModelSpec
    plan: Plan
    dtypes: Dtypes
    cluster: Cluster
    profile: Profile
    max_num_batched_tokens: int | None = None
    max_num_seqs: int | None = None
    generator: Generator = Generator()
    redundant_experts: int = 0
    overlap: Overlap | None = None
    communication: Communication | None = None
    faults: Faults | None = None
    away: ExpertsAway | None = None

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
    def drafting(self) -> Drafting | None:
        """Drafts of the engine with this model; None without."""
        return self.profile.speculation.drafting(self.drafts) if self.drafts else None

    @property
    def tokens_per_step(self) -> float:
        """Mean tokens that a sequence gains in a decode step. [tokens]"""
        return 1.0 if self.drafting is None else self.drafting.gain

    @cached_property
    def costs(self) -> StepCosts:
        """Prices of the parts of an iteration."""
        device = self.cluster.node.device
        return StepCosts(
            self.model,
            self.plan,
            self.dtypes,
            engine_cost(device, self.profile.kernels),
            Fabric.of(self.cluster, self.plan.num_devices, self.communication, self.faults),
            self.profile.kernels,
            self.generator,
            self.redundant_experts,
        )

    @property
    def overlaps(self) -> bool:
        """Whether iterations of enough tokens are cut into parts that overlap."""
        if self.overlap is None or self.overlap.num_batches == 1:
            return False  # asked of every iteration, and experts are counted layer by layer
        return self.plan.attention_dp > 1 and self.model.num_experts > 0

    def step_times(
        self, tier: Literal["exact", "table"] = "table", spread: Spread | None = None
    ) -> DeploymentTimes:
        """Iteration times, priced one by one or from tables that are filled once.

        ``spread`` of the caches that decode together; None: all alike.
        """
        return DeploymentTimes(self, self._tabulated if tier == "table" else self._exact, spread)

    @cached_property
    def _exact(self) -> ExactParts:
        return ExactParts(self.costs, 1.0 + self.drafts, self.profile.graph_batches[-1])

    @cached_property
    def _tabulated(self) -> TabulatedParts:
        return TabulatedParts(
            self._exact,
            max_tokens=2 * self.token_budget,
            num_groups=self.plan.attention_dp,
            graph_batches=self.profile.graph_batches,
            drafts=self.drafts > 0,
        )

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
        need = book.need_bytes
        if self.away is not None:
            need = need - book.parts[ROUTED] + self.away.device_bytes
        return float(need.max())


@dataclass(frozen=True)
class DeploymentTimes:
    """Iteration times of a deployment, put together from its parts.

    Attributes
    ----------
    deployment : Deployment
    parts : Parts
        Exact, or from tables.
    spread : Spread, optional
        Of the caches of sequences that decode together; None: all alike.
    """

    deployment: Deployment
    parts: Parts
    spread: Spread | None = None

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
        padded, head = self._padded(shapes), self.parts.head(shapes.num_decodes + shapes.num_prefills)
        own = self._own_s(shapes, self.parts.tokens(padded)) + self._attention_s(shapes) + head
        device = beside = self._slowest(own)
        if self.deployment.model.num_experts:
            device = device + self.parts.stage(padded.sum(axis=1))
        if self.deployment.overlaps:
            woven = self._woven_s(shapes) + self._slowest(head)
            device = np.where(self._is_cut(shapes), woven, device)
        if self.deployment.away is not None:
            prompts = np.asarray((shapes.prefill_tokens > 0).any(axis=1))
            added = self.deployment.away.seconds(shapes.new_tokens.sum(axis=1), prompts)
            device = np.maximum(device + added, beside)
        if self.deployment.drafts:
            decodes = shapes.num_decodes.max(axis=1)
            passes = self.deployment.drafts * self.parts.draft(np.maximum(decodes, 1.0))
            device = device + np.where(decodes > 0, passes, 0.0)
        launching_s = self.deployment.profile.host.eager_layer_s * self.deployment.model.num_layers
        return np.asarray(np.where(self._is_eager(shapes), np.maximum(device, launching_s), device))

    def _own_s(self, shapes: StepShape, seconds: Floats) -> Floats:
        """Time of ranks that have tokens, ``(sample, rank)``; others do nothing. [s]"""
        return np.where(shapes.new_tokens > 0, seconds, 0.0)

    def _attention_s(self, shapes: StepShape) -> Floats:
        """Core of the attention of all layers, ``(sample, rank)``. [s]"""
        return self._decode_attention_s(shapes) + self.parts.prefill(
            shapes.prefill_tokens, shapes.prefill_keys
        )

    def _slowest(self, own: Floats) -> Floats:
        """Time until the last rank of a stage is through, ``(sample,)``. [s]"""
        return np.asarray((own / self.deployment.costs.rank_speed).max(axis=1))

    def _is_cut(self, shapes: StepShape) -> NDArray[np.bool_]:
        """Iterations in which every rank has the tokens to overlap parts of them, ``(sample,)``."""
        least = self.deployment.profile.overlap_from
        fewest = shapes.new_tokens.min(axis=1)
        prompts = (shapes.prefill_tokens > 0).any(axis=1)
        return np.asarray(fewest >= np.where(prompts, least.prefill_tokens, least.decode_tokens))

    def _woven_s(self, shapes: StepShape) -> Floats:
        """Time of cut iterations without the head, ``(sample,)``. [s]"""
        deployment, overlap = self.deployment, self.deployment.overlap
        assert overlap is not None  # asked for where there is one
        layers, routed = deployment.model.num_layers, len(deployment.model.moe_layers)
        part = shapes.parts(overlap.num_batches)
        tokens, attention = self._padded(part), self._attention_s(part)
        beside = self._own_s(part, self.parts.beside_experts(tokens)) + attention * (routed / layers)
        rest = self._own_s(part, self.parts.tokens(tokens)) + attention - beside
        each = {label: self.parts.phase(label, tokens.sum(axis=1)) for label in (DISPATCH, EXPERTS, COMBINE)}
        woven = layers_s(overlap, routed, self._slowest(beside), each[DISPATCH], each[EXPERTS], each[COMBINE])
        return np.asarray(woven + overlap.num_batches * np.maximum(self._slowest(rest), 0.0))

    def _decode_attention_s(self, shapes: StepShape) -> Floats:
        """Attention of the decoding sequences of each rank, ``(sample, rank)``. [s]

        A kernel that takes prompts in the same launch is slower beside them, and waits for the longest.
        """
        decodes, context, launch = shapes.num_decodes, shapes.decode_context, self.parts.launch
        alone = self.parts.decode(decodes, context)
        if launch is None:
            return alone
        longest = shapes.prefill_squares / np.maximum(shapes.prefill_tokens, 1.0)
        rows = launch.kernel.rows
        grid = (decodes + shapes.num_prefills) * np.ceil(longest / rows)
        empty = np.maximum(grid - decodes - shapes.prefill_tokens / rows, 0.0)
        beside = alone + self.parts.beside(decodes, context) + launch.empty_s(empty)
        return np.where(shapes.prefill_tokens > 0, beside, alone * along(decodes, *self._uneven))

    @cached_property
    def _uneven(self) -> tuple[Floats, Floats]:
        """Batches, and how much longer attention of unequal caches takes than of equal ones."""
        launch, batches = self.parts.launch, np.array(BATCHES, dtype=np.float64)
        if launch is None or self.spread is None:
            return batches, np.ones_like(batches)
        return batches, launch.uneven(BATCHES, self.spread)

    def overhead(self, shapes: StepShape) -> Floats:
        """Exposed host time of each iteration, ``(sample,)``. [s]"""
        host = self.deployment.profile.host
        rows = (shapes.num_decodes + shapes.num_prefills).max(axis=1)
        return np.asarray(host.iteration_s + host.sequence_s * rows)

    def terms(self, shapes: StepShape) -> tuple[Term, ...]:
        """What decode iterations are made of, each ``(sample,)``; all ranks alike.

        Of an iteration in overlapping parts, exchanges are told as far as nothing hides them.
        """
        costs, ranks = self.deployment.costs, self.deployment.plan.attention_dp
        overlap = self.deployment.overlap
        cut = self.deployment.overlaps and overlap is not None and bool(self._is_cut(shapes).all())
        times = overlap.num_batches if cut and overlap is not None else 1
        part = shapes.parts(times)
        tokens = self._padded(part).max(axis=1)
        decodes = part.num_decodes.max(axis=1)
        context = part.decode_context.max(axis=1)
        stage = costs.by_stage_tokens(tokens * ranks)
        body = (
            *costs.by_tokens(tokens, graph_tokens=self.deployment.profile.graph_batches[-1]),
            *costs.decode(decodes, context, shapes.tokens_per_decode),
            *(term for term in stage if term.label == EXPERTS),
        )
        moves = [term for term in stage if term.label != EXPERTS]
        if cut:
            exposed = np.maximum(self._woven_s(shapes) - times * total(body), 0.0)
            moves = [replace(t, seconds=t.seconds * exposed / (times * total(moves))) for t in moves]
        repeated = tuple(replace(term, seconds=times * term.seconds) for term in (*body, *moves))
        batch = shapes.num_decodes.max(axis=1)
        return (*repeated, *costs.head(batch), *self._draft_terms(batch), *self._away_terms(shapes))

    def _away_terms(self, shapes: StepShape) -> tuple[Term, ...]:
        away, tokens = self.deployment.away, shapes.new_tokens.sum(axis=1)
        if away is None:
            return ()
        return (Term(AWAY, AWAY, "assumed", away.sigma, away.seconds(tokens, np.zeros(len(tokens), bool))),)

    def _draft_terms(self, batch: Floats) -> tuple[Term, ...]:
        drafts, context = self.deployment.drafts, np.full_like(batch, float(DRAFT_CONTEXT))
        each = self.deployment.costs.draft(np.maximum(batch, 1.0), context) if drafts else ()
        return tuple(replace(term, seconds=drafts * term.seconds) for term in each)

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
