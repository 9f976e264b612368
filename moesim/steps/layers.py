"""Blocks of one pipeline stage: what every rank launches for its layers, in order.

Two ways to reach the experts. With several attention data-parallel groups, tokens are dispatched to
the ranks of their experts and combined back (all-to-all). With one group every rank holds every
token already: it computes its own experts' share and an all-reduce adds the shares up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from moesim.engine.program import Demand, Part
from moesim.evidence import Estimate
from moesim.kernels.cost import FAMILY, KernelCost
from moesim.kernels.histogram import ExpertLoad
from moesim.model.dtypes import Dtypes, bytes_per_element
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
from moesim.model.spec import LayerSpec, ModelSpec, MoeSpec, PlainFfn
from moesim.network.collectives.group import all_gather, all_reduce, reduce_scatter
from moesim.network.demand import LinkPool, Transfer
from moesim.network.exchanges.base import Load, Phase, exchange
from moesim.network.fabric import Fabric
from moesim.steps.block import Block, Exchange
from moesim.steps.routing import RoutedBatch

Number = TypeVar("Number", np.int64, np.float64)
Collective = Callable[[float, NDArray[np.int64], Fabric], Estimate]

LABELS = {
    "gemm": "projections",
    "attention_prefill": "attention",
    "attention_decode": "attention",
    "elementwise": "norms and element-wise",
    "router": "router",
}
"""How operations of a family are called in a breakdown, unless their place says more."""


@dataclass(frozen=True)
class Stage:
    """Ranks of one pipeline stage and what they hold.

    Attributes
    ----------
    index : int
        Stage number.
    ranks : ndarray of int, ``(member,)``
        Global ranks of the stage, in order.
    tp, ep, moe_tp, attention_dp : int
        Degrees inside the stage.
    layers : tuple of int
        Model layers of the stage.
    is_first, is_last : bool
        Holds the embedding; holds the head.
    """

    index: int
    ranks: NDArray[np.int64]
    tp: int
    ep: int
    moe_tp: int
    attention_dp: int
    layers: tuple[int, ...]
    is_first: bool
    is_last: bool

    @property
    def dispatches(self) -> bool:
        """Whether tokens travel to their experts."""
        return self.attention_dp > 1


@dataclass(frozen=True)
class Lane:
    """One of the concurrent batches of a stage.

    Attributes
    ----------
    segments : tuple of Segment
        What one attention group works on.
    routed : RoutedBatch or None
        Its tokens on the experts of the stage's MoE layers; None where there are none.
    """

    segments: tuple[Segment, ...]
    routed: RoutedBatch | None

    @property
    def tokens(self) -> float:
        """New tokens of one attention group."""
        return float(sum(s.tokens for s in self.segments))

    @property
    def sequences(self) -> float:
        """Sequences of one attention group: rows of the output head."""
        return float(sum(s.num_sequences for s in self.segments))


@dataclass
class StageBuilder:
    """Builds the blocks of one stage for one lane; costs of equal layers are worked out once.

    With ``links`` every exchange says what it asks of them, for others are on them too.
    """

    model: ModelSpec
    stage: Stage
    dtypes: Dtypes
    dispatch_dtype: str
    cost: KernelCost
    fabric: Fabric
    num_ranks: int
    num_slots: int
    links: LinkPool | None = None
    _pending: list[Part] = field(default_factory=list)
    _blocks: list[Block] = field(default_factory=list)
    _attention: dict[LayerSpec, tuple[Part, ...]] = field(default_factory=dict)
    _moe_index: dict[int, int] = field(default_factory=dict)
    _worked: dict[tuple[str, tuple[Op, ...]], tuple[Part, ...]] = field(default_factory=dict)
    _exchanged: dict[tuple[str, float, bool], Exchange] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._moe_index = {layer: row for row, layer in enumerate(self.moe_layers)}
        self._sharding = Sharding(self.stage.tp, self.dtypes)
        self._has_slow_devices = bool((self.fabric.device_speed < 1).any())
        self._token_bytes = self.model.hidden_size * bytes_per_element(self.dtypes.activations)

    @property
    def moe_layers(self) -> list[int]:
        """Model layers of the stage that have experts: the rows of a lane's routed batch."""
        return [layer for layer in self.stage.layers if self.model.layers[layer].moe is not None]

    def expert_op(self, moe: MoeSpec) -> GroupedExperts:
        """Experts of one MoE layer on one rank."""
        stage = self.stage
        return expert_op(
            moe, self.model.hidden_size, self.num_slots // stage.ep, self.dtypes, moe_tp=stage.moe_tp
        )

    def blocks(self, lane: Lane) -> list[Block]:
        """Blocks of all layers of the stage, embedding and head included."""
        self._pending, self._blocks, self._attention = [], [], {}
        experts = _ExpertTimes(self, lane) if lane.routed is not None else None
        if self.stage.is_first:
            self._work("embedding", embedding_ops(self.model, lane.tokens, self.dtypes))
        for index in self.stage.layers:
            layer = self.model.layers[index]
            self._attention_of(layer, lane)
            if layer.moe is not None:
                assert experts is not None  # a routed batch is checked where the scenario is built
                self._moe(index, layer.moe, lane, experts)
                continue
            self._tensor_parallel(index, "all_reduce", all_reduce, lane.tokens)
            if layer.plain is not None:
                self._work("dense ffn", self._with_norm(layer.plain, lane.tokens))
                self._tensor_parallel(index, "all_reduce", all_reduce, lane.tokens)
        if self.stage.is_last:
            self._work("output head", head_ops(self.model, lane.sequences, self._sharding))
        self._close(None)
        return self._blocks

    def _attention_of(self, layer: LayerSpec, lane: Lane) -> None:
        if layer not in self._attention:
            ops = attention_ops(layer, self.model.hidden_size, lane.segments, self._sharding)
            self._attention[layer] = self._parts(ops, {"projections": "attention projections"})
        self._pending += self._attention[layer]

    def _with_norm(self, ffn: PlainFfn, tokens: float) -> list[Op]:
        norm = norm_op("ffn_norm", self.model.hidden_size, tokens, self.dtypes)
        return [norm, *plain_ffn_ops(ffn, self.model.hidden_size, tokens, self._sharding)]

    def _moe(self, index: int, moe: MoeSpec, lane: Lane, experts: _ExpertTimes) -> None:
        stage, hidden = self.stage, self.model.hidden_size
        split = stage.dispatches
        local_tokens = lane.tokens / stage.tp if split else lane.tokens
        collective, name = (reduce_scatter, "reduce_scatter") if split else (all_reduce, "all_reduce")
        self._tensor_parallel(index, name, collective, lane.tokens)
        copies = local_tokens * moe.experts_per_token
        self._work("router", [norm_op("ffn_norm", hidden, local_tokens, self.dtypes)])
        self._work("router", router_ops(moe, hidden, local_tokens, self.dtypes))
        # dispatched tokens meet replicated shared experts; otherwise they are sharded like a dense part
        sharding = replace(self._sharding, tp=1) if split else self._sharding
        self._work("shared experts", shared_expert_ops(moe, hidden, local_tokens, sharding))
        row = self._moe_index[index]
        gathers = not self.cost.permutes(self.expert_op(moe))
        if gathers:
            self._work("permute", [permute_op(moe, hidden, local_tokens, copies, self.dtypes)])
        if split:
            self._close(index, experts.dispatch(row))
        self._pending.append(experts.compute(row))
        if split:
            self._close(index, experts.combine(row))
        if gathers:
            self._work("permute", [unpermute_op(moe, hidden, local_tokens, copies, self.dtypes)])
        if split:
            self._tensor_parallel(index, "all_gather", all_gather, lane.tokens)
        else:
            self._tensor_parallel(index, "all_reduce", all_reduce, lane.tokens, whole_stage=True)

    def _work(self, label: str, ops: Iterable[Op]) -> None:
        known = label, tuple(ops)
        if known not in self._worked:
            self._worked[known] = self._parts(known[1], dict.fromkeys(LABELS.values(), label))
        self._pending += self._worked[known]

    def _parts(self, ops: Iterable[Op], renamed: dict[str, str]) -> tuple[Part, ...]:
        """Operations summed by what they are called and what their errors depend on."""
        sums: dict[str, Estimate] = {}
        for op in ops:
            label = LABELS[FAMILY[type(op)]]
            name = f"{renamed.get(label, label)}|{FAMILY[type(op)]}"
            estimate = self.cost.op(op)
            before = sums.get(name)
            sums[name] = (
                estimate if before is None else replace(before, seconds=before.seconds + estimate.seconds)
            )
        return tuple(
            Part(name.split("|")[0], "compute", self.slowed(estimate)) for name, estimate in sums.items()
        )

    def slowed(self, estimate: Estimate) -> Estimate:
        """The same work where some devices run below their rate: seconds of each rank."""
        speed = self.fabric.device_speed
        return replace(estimate, seconds=estimate.seconds / speed) if self._has_slow_devices else estimate

    def _tensor_parallel(
        self, layer: int, name: str, collective: Collective, tokens: float, *, whole_stage: bool = False
    ) -> None:
        members = self.stage.ranks if whole_stage else self.stage.ranks[: self.stage.tp]
        if len(members) == 1:
            return
        known = name, tokens, whole_stage
        if known not in self._exchanged:
            estimate = collective(tokens * self._token_bytes, members, self.fabric)
            part = Part(f"tensor-parallel {name.replace('_', '-')}", name, estimate)
            # through each port, as on a ring
            turns = 2 if name == "all_reduce" else 1
            moved = turns * (1 - 1 / len(members)) * tokens * self._token_bytes
            demand = self._ring_demand(len(members), moved, estimate)
            group = self.stage_group if whole_stage else self._tp_group
            self._exchanged[known] = Exchange(part, group, demand)
        self._close(layer, self._exchanged[known])

    def _ring_demand(self, size: int, moved_bytes: float, estimate: Estimate) -> Demand | None:
        """Demand of groups of ``size`` neighbouring ranks in which each sends to the next."""
        if self.links is None:
            return None
        ranks = self.stage.ranks.reshape(-1, size)
        peer = np.full(self.num_ranks, -1, dtype=np.int64)
        peer[ranks] = np.roll(ranks, -1, axis=1)
        return self.links.demand_to_peers(peer, moved_bytes, estimate.seconds)

    def _close(self, layer: int | None, exchange: Exchange | None = None) -> None:
        if self._pending or exchange is not None:
            self._blocks.append(Block(layer, tuple(self._pending), exchange))
        self._pending = []

    @cached_property
    def stage_group(self) -> NDArray[np.int64]:
        """One group of all ranks of the stage, ``(rank,)``; -1 elsewhere."""
        return self.scattered(np.zeros(len(self.stage.ranks), dtype=np.int64), fill=-1)

    @cached_property
    def _tp_group(self) -> NDArray[np.int64]:
        return self.scattered(np.arange(len(self.stage.ranks)) // self.stage.tp, fill=-1)

    def exchange_load(self, phase: Phase, lane: Lane, routed: RoutedBatch) -> Load:
        """What dispatch or combine of a lane's layers moves."""
        there = phase == "dispatch"
        return Load(
            phase=phase,
            ports=routed.ports if there else routed.ports.transposed(),
            row_bytes=self.row_bytes(phase),
            ranks=self.stage.ranks,
            tokens_per_rank=lane.tokens / self.stage.tp,
            num_experts=self.num_slots,
            deduplicate=self.fabric.communication.deduplicate,
            shared=routed.shared if there else routed.shared_back,
        )

    def row_bytes(self, phase: Phase) -> float:
        """Payload of a token that is dispatched or combined. [bytes]"""
        dtype = self.dispatch_dtype if phase == "dispatch" else self.dtypes.activations
        whole = self.model.routed_hidden * bytes_per_element(dtype)
        return whole * self.fabric.communication.payload_ratio

    def scattered(self, values: NDArray[Number], fill: int = 0) -> NDArray[Number]:
        """Values of the stage's ranks as an array over all ranks."""
        if len(values) == self.num_ranks:
            return values
        everywhere = np.full(self.num_ranks, fill, dtype=values.dtype)
        everywhere[self.stage.ranks] = values
        return everywhere


class _ExpertTimes:
    """Expert, dispatch and combine durations of all MoE layers at once."""

    def __init__(self, builder: StageBuilder, lane: Lane) -> None:
        assert lane.routed is not None
        self._builder = builder
        stage, model = builder.stage, builder.model
        routed = lane.routed
        self._compute: dict[int, Part] = {}
        rows_of: dict[MoeSpec, list[int]] = {}
        for row, layer in enumerate(builder.moe_layers):
            rows_of.setdefault(_moe_of(model, layer), []).append(row)
        for moe, rows in rows_of.items():
            estimate = builder.cost.experts(builder.expert_op(moe), _rows(routed.load, rows))
            seconds = np.asarray(estimate.seconds, dtype=np.float64)
            for at, row in enumerate(rows):
                of_rank = replace(estimate, seconds=builder.scattered(seconds[at]))
                self._compute[row] = Part("experts", "compute", builder.slowed(of_rank))
        if stage.dispatches:
            self._routed = routed
            self._dispatch = exchange(builder.exchange_load("dispatch", lane, routed), builder.fabric)[1]
            self._combine = exchange(builder.exchange_load("combine", lane, routed), builder.fabric)[1]

    def compute(self, row: int) -> Part:
        """Expert block of one MoE layer."""
        return self._compute[row]

    def dispatch(self, row: int) -> Exchange:
        """All-to-all to the experts of one MoE layer."""
        part = Part("dispatch", "all_to_all", _row(self._dispatch, row))
        return Exchange(part, self._builder.stage_group, self._demand("dispatch", row))

    def combine(self, row: int) -> Exchange:
        """All-to-all back."""
        part = Part("combine", "all_to_all", _row(self._combine, row))
        return Exchange(part, self._builder.stage_group, self._demand("combine", row))

    def _demand(self, phase: Phase, row: int) -> Demand | None:
        """What dispatch or combine of one MoE layer asks of the links; None where nobody else is on them."""
        builder, routed = self._builder, self._routed
        there = phase == "dispatch"
        tokens = routed.links if there else routed.links_back
        if builder.links is None or tokens is None:
            return None
        seconds = float(np.asarray((self._dispatch if there else self._combine).seconds)[row])
        transfer = Transfer(tokens[row] * builder.row_bytes(phase), seconds)
        return builder.links.demand(transfer, builder.stage.ranks, builder.num_ranks)


def _moe_of(model: ModelSpec, layer: int) -> MoeSpec:
    moe = model.layers[layer].moe
    assert moe is not None  # only MoE layers are asked for
    return moe


def _row(estimate: Estimate, row: int) -> Estimate:
    return replace(estimate, seconds=float(np.asarray(estimate.seconds)[row]))


def _rows(load: ExpertLoad, rows: Sequence[int]) -> ExpertLoad:
    return ExpertLoad(load.rows[rows], load.touched[rows], {b: r[rows] for b, r in load.padded_rows.items()})
