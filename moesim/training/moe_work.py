"""The MoE part of every layer: router, dispatch, experts, combine; all layers are priced together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from moesim.engine.program import Part
from moesim.evidence import Estimate
from moesim.model.dtypes import bytes_per_element
from moesim.model.layer_ops import (
    expert_op,
    norm_op,
    permute_op,
    router_ops,
    shared_expert_ops,
    unpermute_op,
)
from moesim.model.ops import GroupedExperts, MemoryBound, Op
from moesim.model.spec import MoeSpec
from moesim.network.collectives.group import all_gather, reduce_scatter
from moesim.network.crowding import PortUse, ring_use
from moesim.network.exchanges.base import Load, Phase, exchange, takes_rows_in_order
from moesim.training.backward import Passes
from moesim.training.copies import copies_s
from moesim.training.items import Item, Link, Piece, Work
from moesim.training.loads import group_load
from moesim.training.overlapped import Layer

if TYPE_CHECKING:
    from moesim.training.work import LayerWork


class MoeWork:
    """Items of all MoE layers of a kind; experts and exchanges of all layers are priced together.

    With ``fraction`` experts and exchanges are those of a part of the rows, as chunks of them would be.
    """

    def __init__(self, work: LayerWork, moe: MoeSpec, fraction: float = 1.0) -> None:
        self.outer, self.moe, self.fraction = work, moe, fraction
        plan, fabric = work.plan, work.fabric
        self.rows = {layer: row for row, layer in enumerate(work.model.moe_layers)}
        self.ranks = plan.ep_ranks()
        # ranks that share an expert's width hold the same tokens once these are gathered: each sends its own
        self.shared_tokens = work.local_tokens * plan.etp * fraction
        self.load = group_load(
            work.shares,
            moe,
            tokens_per_rank=self.shared_tokens,
            domain=np.asarray(fabric.domain[self.ranks]),
            deduplicate=work.options.deduplicate,
            capacity_factor=work.options.capacity_factor,
            served=work.spread.served if work.spread else None,
            held=work.spread.held if work.spread else None,
        )
        op = expert_op(moe, work.model.hidden_size, moe.num_experts // plan.ep, work.dtypes, moe_tp=plan.etp)
        self.experts = work.cost.experts(op, self.load.load)
        self.permutations = self._permutations(op)
        inner = (op.num_up_matrices + 1) * op.width * bytes_per_element(work.dtypes.activations)
        self.activation = work.cost.op(MemoryBound("expert_activation", self.load.load.rows * inner))
        if plan.ep > 1:
            loads = [self._load("dispatch"), self._load("combine")]
            self.dispatch, self.combine = (exchange(load, fabric)[1] for load in loads)
            self.use = self._use_of(loads)
        self._around = self._pieces()
        self._known: dict[bytes, list[Item]] = {}
        self._parts: dict[float, MoeWork] = {1.0: self}

    def _permutations(self, op: GroupedExperts) -> int:
        """Times that rows are put in order beside the experts' own kernel. [-]

        Experts need their rows together, and an exchange may need them in order of their destination; those
        that arrive for a single expert lie together.
        """
        ordered = self.outer.plan.ep > 1 and takes_rows_in_order(self.outer.fabric)
        needed = 1 + (ordered and op.num_local_experts > 1)
        return needed - self.outer.cost.kernels.permutes(op)

    def at(self, fraction: float) -> MoeWork:
        """The same for a part of the rows."""
        if fraction not in self._parts:
            self._parts[fraction] = MoeWork(self.outer, self.moe, fraction)
        return self._parts[fraction]

    def items(self, layer: int) -> list[Item]:
        """Items of one layer; layers of equal loads share theirs."""
        row, spread = self.rows[layer], self.outer.spread
        key = self.outer.shares[:, row].tobytes() + (spread.key(row) if spread else b"")
        if key not in self._known:
            self._known[key] = self._items(row, layer)
        return self._known[key]

    def _items(self, row: int, layer: int) -> list[Item]:
        plan = self.outer.plan
        before, after = self._around
        experts, options = Piece((self.experts_of(row),)), self.outer.options
        if plan.ep == 1:
            return [before, *self._width_shared(experts), after]
        weights = self._weights_sent(row, layer)
        if options.overlap is not None:
            return [before, *weights, Layer(self, row).overlapped(options.overlap), after]
        there = Part("dispatch", "all_to_all", self.exchange_of("dispatch", row))
        back = Part("combine", "all_to_all", self.exchange_of("combine", row))
        waits = options.host_reads_counts and options.capacity_factor is None
        dispatch = Link(
            there,
            back,
            "dispatch",
            everybody=True,
            hides_weight_gradient=options.delayed_weight_gradient,
            host_waits=waits,
            memory_s=self._memory_s(row),
            use=self.use,
        )
        combine = replace(
            dispatch, forward=back, backward=there, hides_weight_gradient=False, host_waits=False
        )
        return [before, *weights, dispatch, *self._width_shared(experts), combine, after]

    def _weights_sent(self, row: int, layer: int) -> list[Item]:
        """Weights of experts that others help with are sent to these, their gradients come back.

        Known ahead, they travel under the layer's attention, forward and (where it takes longer) backward.
        """
        spread, size = self.outer.spread, self.outer.plan.ep
        if spread is None or not spread.sent[:, row].any():
            return []
        there, back = (_over_ranks(each, row, size) for each in self.sent)
        if spread.ahead:
            hidden_s = self.outer.attention_s(layer)
            there, back = (replace(e, seconds=np.maximum(e.seconds - hidden_s, 0.0)) for e in (there, back))
        weights = Part("expert weights to helpers", "send", there)
        gradients = Part("expert gradients from helpers", "send", back)
        return [Link(weights, gradients, "dispatch", everybody=True, hides_weight_gradient=False)]

    @cached_property
    def sent(self) -> tuple[Estimate, Estimate]:
        """Experts to helpers forward, their gradients back backward, each ``(draw, layer)``. [s]"""
        outer = self.outer
        assert outer.spread is not None
        numbers = self.moe.expert_parameters(outer.model.hidden_size) / outer.plan.etp
        weights, gradients = (
            numbers * bytes_per_element(dtype) for dtype in (outer.dtypes.experts, outer.cost.gradient_dtype)
        )
        return copies_s(outer.spread, weights, gradients, self.ranks, outer.fabric)

    def experts_of(self, row: int) -> Work:
        """Experts of one layer, ``(draw * member,)``."""
        activation = _flat(self.activation.forward, row)
        launches = self.outer.cost.expert_launches
        return Work("experts", "experts", _row_of(self.experts, row), activation, launches)

    def exchange_of(self, phase: str, row: int) -> Estimate:
        """An exchange of one layer, ``(draw * member,)``."""
        whole = self.dispatch if phase == "dispatch" else self.combine
        return _over_ranks(whole, row, self.outer.plan.ep)

    @cached_property
    def width_bytes(self) -> float:
        """Rows that ranks sharing an expert's width gather before it, and sum after it. [bytes]"""
        return self.shared_tokens * self.moe.experts_per_token * self.outer.token_bytes

    def width_exchange(self, phase: Phase) -> Estimate:
        """Gathering those rows behind dispatch, or summing them before combine."""
        outer = self.outer
        collective = all_gather if phase == "dispatch" else reduce_scatter
        return collective(self.width_bytes, outer.plan.etp_ranks(), outer.fabric)

    def _width_shared(self, experts: Piece) -> list[Item]:
        """Experts cut over ranks: tokens are gathered among these before, and summed after."""
        outer = self.outer
        if outer.plan.etp == 1:
            return [experts]
        gather = Part("expert all-gather", "all_gather", self.width_exchange("dispatch"))
        scatter = Part("expert reduce-scatter", "reduce_scatter", self.width_exchange("combine"))
        use = ring_use(self.width_bytes, outer.plan.etp_ranks(), gather.estimate.seconds, outer.fabric)
        before = Link(gather, scatter, "dispatch", everybody=False, hides_weight_gradient=False, use=use)
        return [before, experts, replace(before, forward=scatter, backward=gather)]

    def _pieces(self) -> tuple[Piece, Piece]:
        """What comes before dispatch and after combine, equal in all layers."""
        outer, moe, hidden = self.outer, self.moe, self.outer.model.hidden_size
        tokens, dtypes = outer.local_tokens, outer.dtypes
        copies = tokens * moe.experts_per_token
        router: list[Op] = [
            norm_op("ffn_norm", hidden, tokens, dtypes),
            *router_ops(moe, hidden, tokens, dtypes),
        ]
        shared = shared_expert_ops(moe, hidden, tokens, replace(outer.sharding, tp=1))
        gather: list[Op] = [permute_op(moe, hidden, tokens, copies, dtypes)] * self.permutations
        settle: list[Op] = [unpermute_op(moe, hidden, tokens, copies, dtypes)] * self.permutations

        def permuted(ops: list[Op]) -> tuple[Work, ...]:
            """Without launches: these are among the small ones of router and dispatcher."""
            return tuple(replace(work, launches=0) for work in outer.works(ops, "permute"))

        before = Piece(
            (
                *outer.works(router, "router"),
                *outer.works(shared, "shared experts"),
                *permuted(gather),
            ),
            extra_launches=outer.options.router_launches,
            captured=outer.options.captured_pieces,
        )
        return before, Piece(permuted(settle))

    def _memory_s(self, row: int) -> NDArray[np.float64]:
        """Time of main memory to read what a rank sends and to write what it gets, ``(draw * member,)``."""
        outer, ports = self.outer, self.load.ports.scaled(1.0 / self.outer.plan.etp)
        tokens = ports.scale_up_out + ports.scale_up_in + ports.scale_out_out + ports.scale_out_in
        copied = MemoryBound("exchange", tokens[:, row].ravel() * outer.token_bytes)
        return np.asarray(outer.cost.kernels.op(copied).seconds)

    def _load(self, phase: Phase) -> Load:
        """What one phase moves, ``(draw, layer)``."""
        outer = self.outer
        there = phase == "dispatch"
        dtype = outer.options.dispatch_dtype if there else outer.dtypes.activations
        payload_ratio = outer.fabric.communication.payload_ratio
        ports = self.load.ports.scaled(1.0 / outer.plan.etp)
        return Load(
            phase=phase,
            ports=ports if there else ports.transposed(),
            row_bytes=self.moe.routed_hidden(outer.model.hidden_size)
            * bytes_per_element(dtype)
            * payload_ratio,
            ranks=self.ranks,
            tokens_per_rank=outer.local_tokens * self.fraction,
            num_experts=self.moe.num_experts,
            deduplicate=outer.options.deduplicate,
        )

    def _use_of(self, loads: Sequence[Load]) -> PortUse:
        """Of the busiest rank's ports, mean over both phases and all layers."""
        fabric = self.outer.fabric
        up, out = (
            sum(float(np.mean(of(load, fabric))) for load in loads)
            for of in (Load.scale_up_bytes, Load.nic_bytes)
        )
        seconds = sum(float(np.mean(phase.seconds)) for phase in (self.dispatch, self.combine))
        return PortUse.of(up, out, seconds, fabric)


def _row_of(passes: Passes, row: int) -> Passes:
    """One layer's seconds over the rank axis, ``(draw * member,)``."""
    weight = passes.weight_gradient
    return Passes(
        _flat(passes.forward, row),
        _flat(passes.input_gradient, row),
        None if weight is None else _flat(weight, row),
    )


def _flat(estimate: Estimate, row: int) -> Estimate:
    return replace(estimate, seconds=np.ascontiguousarray(np.asarray(estimate.seconds)[:, row]).ravel())


def _over_ranks(estimate: Estimate, row: int, size: int) -> Estimate:
    """One layer's exchange, equal for the members of a draw, ``(draw * member,)``."""
    seconds: NDArray[np.float64] = np.asarray(estimate.seconds)[:, row]
    return replace(estimate, seconds=np.repeat(seconds, size))
