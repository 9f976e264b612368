"""Pieces and links of every layer that one device holds, priced."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from moesim.engine.program import Part
from moesim.evidence import Estimate
from moesim.model.attention import LatentAttention
from moesim.model.dtypes import Dtypes, bytes_per_element
from moesim.model.layer_ops import attention_ops, embedding_ops, head_ops, norm_op, plain_ffn_ops
from moesim.model.ops import Gemm, MemoryBound, Op, Segment, Sharding
from moesim.model.spec import LayerSpec, ModelSpec, MoeSpec, PlainFfn
from moesim.network.collectives.group import all_gather, reduce_scatter, send
from moesim.network.crowding import ring_use
from moesim.network.fabric import Fabric
from moesim.parallel.train_plan import TrainPlan
from moesim.training.backward import TrainCost
from moesim.training.items import Item, Link, Options, Piece, TrainBatch, Work, works
from moesim.training.loads import GroupLoad, Shares
from moesim.training.moe_work import MoeWork
from moesim.training.spread import Spread

LOSS_BYTES = 14
"""Of one logit, forward: bf16 logit read, fp32 copy written, read twice for its maximum and sum. [bytes]"""


@dataclass
class LayerWork:
    """Pieces and links of every layer of a model, for one group of ranks; equal layers are priced once."""

    model: ModelSpec
    plan: TrainPlan
    dtypes: Dtypes
    batch: TrainBatch
    cost: TrainCost
    fabric: Fabric
    shares: Shares
    options: Options
    num_units: int
    spread: Spread | None = None
    _attention: dict[LayerSpec, list[Item]] = field(default_factory=dict)
    _dense: dict[PlainFfn, list[Item]] = field(default_factory=dict)
    _moe: dict[MoeSpec, MoeWork] = field(default_factory=dict)

    def with_shares(self, shares: Shares) -> LayerWork:
        """The same work under other routing, every expert served at home."""
        return LayerWork(
            self.model, self.plan, self.dtypes, self.batch, self.cost, self.fabric, shares, self.options,
            self.num_units,
        )  # fmt: skip

    def works(self, ops: Iterable[Op], label: str) -> tuple[Work, ...]:
        """Priced operations of a piece that reports call ``label``."""
        return works(ops, label, self.cost)

    @property
    def num_draws(self) -> int:
        """Draws of routing side by side."""
        return len(self.shares)

    @property
    def tokens(self) -> float:
        """Tokens of a microbatch on one rank before tensor parallelism cuts the sequence. [tokens]"""
        return self.batch.micro_batch_size * self.batch.sequence_length / self.plan.cp

    @property
    def local_tokens(self) -> float:
        """Tokens that a rank holds between the tensor-parallel parts. [tokens]"""
        return self.tokens / self.plan.tp

    @property
    def sharding(self) -> Sharding:
        """Tensor parallelism of attention and dense parts."""
        return Sharding(self.plan.tp, self.dtypes)

    @property
    def token_bytes(self) -> float:
        """Activations of a token between layers. [bytes]"""
        return self.model.hidden_size * bytes_per_element(self.dtypes.activations)

    def layer(self, index: int) -> list[Item]:
        """Items of one layer in forward order."""
        spec = self.model.layers[index]
        return [*self._attention_items(spec), *self._ffn_items(spec, index)]

    def mtp(self) -> list[Item]:
        """Items of one multi-token prediction module: two norms, a projection, a layer and the head again."""
        spec, hidden = self.model.mtp_layer, self.model.hidden_size
        if spec is None:
            return []
        join: list[Op] = [
            norm_op("mtp_norm", hidden, self.local_tokens, self.dtypes),
            norm_op("mtp_norm", hidden, self.local_tokens, self.dtypes),
            Gemm(
                "mtp_projection", self.local_tokens, hidden, 2 * hidden,
                self.dtypes.weights, self.dtypes.activations,
            ),
        ]  # fmt: skip
        last = self.model.moe_layers[-1] if self.model.moe_layers else self.model.num_layers - 1
        return [
            Piece(self.works(join, "multi-token prediction")),
            *self._attention_items(spec),
            *self._ffn_items(spec, last),
            *self.head(),
        ]

    def embedding(self) -> list[Item]:
        """Look-up of the input."""
        return [Piece(self.works(embedding_ops(self.model, self.local_tokens, self.dtypes), "embedding"))]

    def head(self) -> list[Item]:
        """Logits of every token and their loss."""
        vocabulary = -(-self.model.vocab_size // self.plan.tp)
        ops = [
            *head_ops(self.model, self.tokens, self.sharding),
            MemoryBound("loss", self.tokens * vocabulary * float(LOSS_BYTES)),
        ]
        gather, scatter = self._gathered(hides=True), Piece(self.works(ops, "output head"))
        return [*([gather] if gather else []), scatter]

    def boundary(self) -> Estimate:
        """One activation message between neighbouring stages. [s]"""
        if self.plan.pp == 1:
            return self.fabric.estimate(0.0, "send")
        payload_bytes = self.local_tokens * self.token_bytes
        return send(payload_bytes, self.plan.neighbours(), self.fabric)

    def load(self, moe: MoeSpec) -> GroupLoad:
        """Expert loads of all MoE layers of a kind."""
        return self._moe_work(moe).load

    def _attention_items(self, spec: LayerSpec) -> list[Item]:
        if spec not in self._attention:
            batch, cp = self.batch, self.plan.cp
            segment = Segment.prefill(batch.micro_batch_size / cp, float(batch.sequence_length))
            ops = attention_ops(spec, self.model.hidden_size, [segment], self.sharding)
            before, after = self._gathered(hides=True), self._scattered()
            fused = self.options.fused_sinks or not getattr(spec.attention, "sinks", False)
            latent = isinstance(spec.attention, LatentAttention)
            done = works(ops, "attention", self.cost, fused=fused, latent=latent)
            piece = Piece(done, captured=self.options.captured_pieces)
            ring = self._context_parallel(spec, piece)
            items: list[Item] = [piece, *ring]
            self._attention[spec] = [before, *items, after] if before and after else items
        return self._attention[spec]

    def attention_s(self, layer: int) -> float:
        """Work of a layer's attention, forward. [s]"""
        items = self._attention_items(self.model.layers[layer])
        work = [one for item in items if isinstance(item, Piece) for one in item.work]
        return float(sum(np.max(one.passes.forward.seconds) for one in work))

    def _context_parallel(self, spec: LayerSpec, piece: Piece) -> list[Item]:
        """What of the ring of keys and values is not hidden behind the attention kernel."""
        if self.plan.cp == 1:
            return []
        per_token = spec.attention.kv_bytes_per_token(self.dtypes.activations, self.plan.tp)
        payload_bytes = per_token * self.batch.micro_batch_size * self.batch.sequence_length
        moved = all_gather(payload_bytes, self.plan.cp_ranks(), self.fabric)
        kernel_s = sum(np.asarray(w.passes.forward.seconds) for w in piece.work if w.tag == "core_attention")
        exposed_s = np.maximum(np.asarray(moved.seconds) - kernel_s, 0.0)
        part = Part("context-parallel ring", "all_gather", replace(moved, seconds=float(exposed_s)))
        use = ring_use(payload_bytes, self.plan.cp_ranks(), moved.seconds, self.fabric)
        return [Link(part, part, "attention", everybody=False, hides_weight_gradient=False, use=use)]

    def _ffn_items(self, spec: LayerSpec, index: int) -> list[Item]:
        if spec.plain is not None:
            return self._dense_items(spec.plain)
        return self._moe_work(spec.moe).items(index) if spec.moe is not None else []

    def _dense_items(self, ffn: PlainFfn) -> list[Item]:
        if ffn not in self._dense:
            hidden = self.model.hidden_size
            ops = [
                norm_op("ffn_norm", hidden, self.local_tokens, self.dtypes),
                *plain_ffn_ops(ffn, hidden, self.tokens, self.sharding),
            ]
            before, after = self._gathered(hides=True), self._scattered()
            piece = Piece(self.works(ops, "dense ffn"))
            self._dense[ffn] = [before, piece, after] if before and after else [piece]
        return self._dense[ffn]

    def _moe_work(self, moe: MoeSpec) -> MoeWork:
        if moe not in self._moe:
            self._moe[moe] = MoeWork(self, moe)
        return self._moe[moe]

    def _gathered(self, *, hides: bool) -> Link | None:
        """All-gather of the sequence before a tensor-parallel part; its gradients are reduce-scattered."""
        return self._sequence("all-gather", "reduce-scatter", hides=hides)

    def _scattered(self) -> Link | None:
        return self._sequence("reduce-scatter", "all-gather", hides=False)

    def _sequence(self, there: str, back: str, *, hides: bool) -> Link | None:
        if self.plan.tp == 1:
            return None
        payload_bytes = self.tokens * self.token_bytes
        ranks, fabric = self.plan.tp_ranks(), self.fabric
        part_of = {
            "all-gather": Part(
                "tensor-parallel all-gather", "all_gather", all_gather(payload_bytes, ranks, fabric)
            ),
            "reduce-scatter": Part(
                "tensor-parallel reduce-scatter",
                "reduce_scatter",
                reduce_scatter(payload_bytes, ranks, fabric),
            ),
        }
        first = part_of[there]
        use = ring_use(payload_bytes, ranks, first.estimate.seconds, fabric)
        return Link(first, part_of[back], "sequence", everybody=False, hides_weight_gradient=hides, use=use)
