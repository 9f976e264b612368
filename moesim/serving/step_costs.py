"""Seconds of the parts of an iteration, each a function of the few numbers that it depends on.

An iteration of a serving engine is a sum: what grows with the new tokens (projections, norms, collectives,
experts), attention of the decoding sequences over their caches, attention of the prompt pieces, and the
output head. Each part is priced for many shapes at once, once a kind of layer; a whole iteration is then a
few look-ups (:mod:`moesim.serving.tabulated`). The order of operations is that of
:class:`moesim.steps.layers.StageBuilder`, as the engine at hand runs it (see :class:`Kernels`), and logits
are gathered to be sampled from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from moesim.evidence import Estimate, Grade
from moesim.kernels.cost import FAMILY, KernelCost
from moesim.kernels.histogram import ExpertLoad
from moesim.model import Dtypes, ModelSpec
from moesim.model.dtypes import bytes_per_element
from moesim.model.layer_ops import (
    attention_ops,
    embedding_ops,
    expert_op,
    head_ops,
    norm_op,
    permute_op,
    plain_ffn_ops,
    router_ops,
    shared_expert_ops,
    unpermute_op,
)
from moesim.model.ops import GroupedExperts, Op, Segment, Sharding
from moesim.model.spec import LayerSpec, MoeSpec
from moesim.network.collectives.group import all_gather, all_reduce, reduce_scatter, send
from moesim.network.exchanges.base import Load, Phase, exchange
from moesim.network.fabric import Fabric
from moesim.network.traffic import PortTokens
from moesim.parallel.plan import Plan
from moesim.serving.expert_draws import ExpertDraws, Generator, with_shared
from moesim.serving.profiles import Kernels

Floats = NDArray[np.float64]

CORE = frozenset({"attention", "index_scores", "q_absorb", "v_absorb", "kv_expand", "state_update"})
"""Operations that see sequences and their caches; all others see only how many tokens are new."""

EXPERTS, DISPATCH, COMBINE = "experts", "dispatch", "combine"
"""Labels of the parts that all attention ranks have together."""
LABELS = {
    "gemm": "projections",
    "elementwise": "norms and element-wise",
    "router": "router",
}


@dataclass(frozen=True, slots=True)
class Term:
    """One part of an iteration over all layers.

    Attributes
    ----------
    label : str
        As breakdowns show it.
    family, grade, sigma
        Of the estimates: whose errors it shares, and how large they are.
    seconds : ndarray, ``(sample,)``
        [s]
    """

    label: str
    family: str
    grade: Grade
    sigma: float
    seconds: Floats


class Terms:
    """Sums of estimates by label, family and grade."""

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples
        self._sums: dict[tuple[str, str, Grade], tuple[Floats, float]] = {}

    def add(self, label: str, estimate: Estimate, times: float = 1.0) -> None:
        """Count an estimate ``times`` over; seconds are scalar or ``(sample,)``."""
        key = (label, estimate.family, estimate.grade)
        seconds = np.broadcast_to(np.asarray(estimate.seconds, dtype=np.float64), self.num_samples) * times
        before, sigma = self._sums.get(key, (np.zeros(self.num_samples), 0.0))
        self._sums[key] = (before + seconds, max(sigma, estimate.sigma))

    def items(self) -> tuple[Term, ...]:
        """All sums, in the order of first appearance."""
        return tuple(Term(*key, sigma, seconds) for key, (seconds, sigma) in self._sums.items())


def total(terms: Iterable[Term]) -> Floats | float:
    """Seconds of all terms, ``(sample,)``; 0 without any."""
    return sum((term.seconds for term in terms), start=np.float64(0.0))


@dataclass(frozen=True)
class StepCosts:
    """Prices of the parts of an iteration on one pipeline stage after another.

    Attributes
    ----------
    model, plan, dtypes : ModelSpec, Plan, Dtypes
        What runs, where and in which formats.
    cost, fabric : KernelCost, Fabric
        Seconds of operations and of bytes.
    kernels : Kernels
        How the engine runs experts, exchanges and quantisation.
    generator : Generator
        That experts are drawn from.
    redundant_experts : int
        Copies of a layer beside one of each expert, over all ranks.
    """

    model: ModelSpec
    plan: Plan
    dtypes: Dtypes
    cost: KernelCost
    fabric: Fabric
    kernels: Kernels
    generator: Generator = Generator()
    redundant_experts: int = 0

    def by_tokens(self, tokens: Floats, *, graph_tokens: int) -> tuple[Term, ...]:
        """Everything that one attention rank does for its new tokens and that needs no other rank's.

        Parameters
        ----------
        tokens : ndarray, ``(sample,)``
            New tokens of one attention data-parallel rank. [tokens]
        graph_tokens : int
            Most tokens of an iteration that a captured graph covers.
        """
        terms = Terms(len(tokens))
        self._add(terms, "embedding", embedding_ops(self.model, tokens, self.dtypes), 1)
        for layer, count in self._kinds:
            self._layer(terms, layer, tokens, graph_tokens, count)
        if self.plan.pp > 1:
            pair = np.array([self._stage[0], self.plan.stage_ranks(1)[0]])
            moved = send(tokens * self._token_bytes, pair, self.fabric)
            terms.add("between stages", moved, self.plan.pp - 1)
        return terms.items()

    def beside_experts(self, tokens: Floats, *, graph_tokens: int) -> tuple[Term, ...]:
        """What of :meth:`by_tokens` lies in the layers that have experts."""
        terms = Terms(len(tokens))
        for layer, count in self._kinds:
            if layer.moe is not None:
                self._layer(terms, layer, tokens, graph_tokens, count)
        return terms.items()

    def by_stage_tokens(self, tokens: Floats) -> tuple[Term, ...]:
        """Experts of the slowest rank and the exchanges that every attention rank joins.

        Parameters
        ----------
        tokens : ndarray, ``(sample,)``
            New tokens of all attention ranks together. [tokens]
        """
        terms = Terms(len(tokens))
        for layer, count in self._kinds:
            if layer.moe is None:
                continue
            terms.add(EXPERTS, self._experts(layer.moe, tokens), count)
            if self.plan.attention_dp > 1:
                for phase in ("dispatch", "combine"):
                    terms.add(phase, self._exchange(layer.moe, tokens, phase), count)
        return terms.items()

    def decode(self, sequences: Floats, context: Floats, query_tokens: float) -> tuple[Term, ...]:
        """Attention of decoding sequences, all ``(sample,)``; mean cached tokens of a sequence."""
        return self._core(Segment.decode(sequences, context, query_tokens), len(sequences))

    def prefill(self, sequences: Floats, query_tokens: Floats, context: Floats) -> tuple[Term, ...]:
        """Attention of prompt pieces, all ``(sample,)``: how many, new tokens and cached tokens of each."""
        return self._core(Segment.prefill(sequences, query_tokens, context), len(sequences))

    def head(self, rows: Floats) -> tuple[Term, ...]:
        """Output head for so many sequences of one attention rank, ``(sample,)``.

        Each tensor-parallel rank has a part of the vocabulary; whoever samples needs all of it.
        """
        terms = Terms(len(rows))
        self._add(terms, "output head", head_ops(self.model, rows, self.sharding), 1)
        logits = rows * (self.model.vocab_size * bytes_per_element(self.dtypes.activations))
        self._collective(terms, "all_gather", logits, 1, "logits")
        return terms.items()

    def draft(self, tokens: Floats, context: Floats) -> tuple[Term, ...]:
        """One pass of the multi-token prediction layer and the head, one token a sequence, ``(sample,)``."""
        layer = self.model.mtp_layer
        if layer is None:
            return ()
        alone = replace(self, model=self.model.with_layers([layer]))
        parts = (
            alone.by_tokens(tokens, graph_tokens=int(tokens.max(initial=1.0))),
            alone.by_stage_tokens(tokens * self.plan.attention_dp),
            alone.decode(tokens, context, 1.0),
            self.head(tokens),
        )
        return tuple(replace(t, label="draft") for part in parts for t in part)

    def _layer(self, terms: Terms, layer: LayerSpec, tokens: Floats, graph_tokens: int, count: int) -> None:
        """A layer without its experts, its exchanges and the core of its attention."""
        segment = Segment.decode(tokens, np.zeros_like(tokens))
        mixing = attention_ops(layer, self.model.hidden_size, [segment], self.sharding)
        self._add(terms, "attention projections", [o for o in mixing if o.name not in CORE], count)
        if layer.moe is not None:
            self._around_experts(terms, layer.moe, tokens, graph_tokens, count)
            return
        self._collective(terms, "all_reduce", tokens * self._token_bytes, count)
        if layer.plain is not None:
            norm = norm_op("ffn_norm", self.model.hidden_size, tokens, self.dtypes)
            work = plain_ffn_ops(layer.plain, self.model.hidden_size, tokens, self.sharding)
            self._add(terms, "dense ffn", [norm, *work], count)
            self._collective(terms, "all_reduce", tokens * self._token_bytes, count)

    @cached_property
    def _kinds(self) -> list[tuple[LayerSpec, int]]:
        return [(layer, len(indices)) for layer, indices in self.model.layer_kinds().items()]

    @cached_property
    def sharding(self) -> Sharding:
        """Tensor-parallel degree and formats of every operation."""
        return Sharding(self.plan.tp, self.dtypes)

    @cached_property
    def _stage(self) -> NDArray[np.int64]:
        return self.plan.stage_ranks(0)

    @property
    def _token_bytes(self) -> float:
        return self.model.hidden_size * bytes_per_element(self.dtypes.activations)

    def _core(self, segment: Segment, num_samples: int) -> tuple[Term, ...]:
        terms = Terms(num_samples)
        for layer, count in self._kinds:
            mixing = attention_ops(layer, self.model.hidden_size, [segment], self.sharding)
            self._add(terms, "attention", [o for o in mixing if o.name in CORE], count)
        return terms.items()

    def _around_experts(
        self, terms: Terms, moe: MoeSpec, tokens: Floats, graph_tokens: int, count: int
    ) -> None:
        """Collectives, norm, router, shared experts and, where not in the experts' time, permutation."""
        hidden, tp = self.model.hidden_size, self.plan.tp
        split = self.plan.attention_dp > 1
        local = tokens / tp if split else tokens
        moved_bytes = tokens * self._token_bytes
        self._collective(terms, "reduce_scatter" if split else "all_reduce", moved_bytes, count)
        self._add(terms, "router", [norm_op("ffn_norm", hidden, local, self.dtypes)], count)
        self._add(terms, "router", router_ops(moe, hidden, local, self.dtypes), count)
        sharding = replace(self.sharding, tp=1) if split else self.sharding
        if not self._fuses(moe):
            shared = self._summed(shared_expert_ops(moe, hidden, local, sharding))
            hides = self.kernels.shared_experts == "parallel"
            for label, estimate in shared:
                seconds = np.where(hides & (tokens <= graph_tokens), 0.0, estimate.seconds)
                terms.add(label, replace(estimate, seconds=seconds), count)
        if not self.cost.permutes(self._expert_op(moe)):
            copies = local * moe.experts_per_token
            moves = [op(moe, hidden, local, copies, self.dtypes) for op in (permute_op, unpermute_op)]
            self._add(terms, "permute", moves, count)
        if split:
            self._collective(terms, "all_gather", moved_bytes, count)
        else:
            self._collective(terms, "all_reduce", moved_bytes, count)

    def _fuses(self, moe: MoeSpec) -> bool:
        """Whether shared experts are one more routed one: of the same width, on every rank."""
        shared = moe.shared
        alike = shared is not None and shared.width == moe.expert_width and self.plan.ep == 1
        return alike and self.kernels.shared_experts == "fused"

    def mean_experts_s(self, tokens: Floats) -> Floats:
        """Experts of the slowest rank over all layers, mean of drawn batches, ``(sample,)``. [s]"""
        each = self._expert_layers.items()
        return np.asarray(sum(count * self._experts(moe, tokens).seconds for moe, count in each))

    def experts_of(self, load: ExpertLoad, tokens: Floats) -> Floats:
        """The same for given loads, each ``(layer, expert-parallel rank, sample)``, of some layers.

        Layers of another kind than the first are taken to be loaded alike.
        """
        each = self._expert_layers.items()
        return np.asarray(sum(count * self._slowest(moe, load, tokens).seconds for moe, count in each))

    @cached_property
    def _expert_layers(self) -> dict[MoeSpec, int]:
        """Layers with experts of each kind."""
        found: dict[MoeSpec, int] = {}
        for layer, count in self._kinds:
            if layer.moe is not None:
                found[layer.moe] = found.get(layer.moe, 0) + count
        return found

    def _experts(self, moe: MoeSpec, tokens: Floats) -> Estimate:
        return self._slowest(moe, self._draws(moe).loads(tokens), tokens)

    def _slowest(self, moe: MoeSpec, load: ExpertLoad, tokens: Floats) -> Estimate:
        """Mean over layers of the slowest rank's time."""
        if self._fuses(moe):
            load = with_shared(load, tokens)
        estimate = self.cost.experts(self._expert_op(moe), load)
        seconds = (np.asarray(estimate.seconds) / self._expert_speed[:, None]).max(axis=1).mean(axis=0)
        return replace(estimate, seconds=np.where(tokens > 0, seconds, 0.0))

    @cached_property
    def rank_speed(self) -> Floats:
        """Speed of the slowest device of each attention group of a stage, ``(group,)``. [-]"""
        return np.asarray(self.fabric.device_speed[self._stage].reshape(-1, self.plan.tp).min(axis=1))

    @cached_property
    def _expert_speed(self) -> Floats:
        """The same of each expert-parallel rank, ``(rank,)``. [-]"""
        speed = self.fabric.device_speed[self._stage]
        return np.asarray(speed.reshape(self.plan.ep, -1).min(axis=1))

    def _expert_op(self, moe: MoeSpec) -> GroupedExperts:
        slots = (moe.num_experts + self.redundant_experts) // self.plan.ep + self._fuses(moe)
        return expert_op(moe, self.model.hidden_size, slots, self.dtypes, moe_tp=self.plan.moe_tp)

    def _exchange(self, moe: MoeSpec, tokens: Floats, phase: Phase) -> Estimate:
        row_bytes = moe.routed_hidden(self.model.hidden_size) * bytes_per_element(self.dtypes.activations)
        if len(self._stage) < self.kernels.all_to_all_from:
            collective = all_gather if phase == "dispatch" else reduce_scatter
            return collective(tokens * row_bytes, self._stage, self.fabric)
        draws = self._draws(moe)
        each = [self._moved(phase, draws.ports(count), row_bytes, count) for count in tokens]
        seconds = np.array([np.mean(estimate.seconds) for estimate in each])
        return replace(each[-1], seconds=seconds)

    def _moved(self, phase: Phase, ports: PortTokens, row_bytes: float, tokens: float) -> Estimate:
        load = Load(
            phase=phase,
            ports=ports if phase == "dispatch" else ports.transposed(),
            row_bytes=row_bytes,
            ranks=self._stage,
            tokens_per_rank=tokens / len(self._stage),
            num_experts=self.model.num_experts,
            deduplicate=self.fabric.communication.deduplicate,
        )
        return exchange(load, self.fabric)[1]

    def _draws(self, moe: MoeSpec) -> ExpertDraws:
        return ExpertDraws(moe, self.plan, np.asarray(self.fabric.domain[self._stage]), self.generator)

    def _collective(
        self,
        terms: Terms,
        name: str,
        payload_bytes: Floats,
        count: int,
        label: str = "tensor-parallel collectives",
    ) -> None:
        members = self._stage[: self.plan.tp]
        if len(members) == 1:
            return
        kind = {"all_reduce": all_reduce, "all_gather": all_gather, "reduce_scatter": reduce_scatter}[name]
        terms.add(label, kind(payload_bytes, members, self.fabric), count)

    def _add(self, terms: Terms, label: str, ops: Sequence[Op], count: int) -> None:
        for name, estimate in self._summed(ops, label):
            terms.add(name, estimate, count)

    def _summed(self, ops: Sequence[Op], label: str = "shared experts") -> list[tuple[str, Estimate]]:
        named = []
        for op in ops:
            usual = LABELS.get(FAMILY[type(op)], label)
            own = label if usual == "projections" or label in {"router", "attention", "embedding"} else usual
            named.append((own, self.cost.op(op)))
        return named
