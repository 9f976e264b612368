"""Vocabulary of a chunk: local work, exchanges, and what a framework does beside the model's own work.

A layer is a list of :class:`Piece` (local work) and :class:`Link` (an exchange). Its forward pass runs down
the list, its backward pass up the list with each exchange turned round. Several draws of routing lie side by
side on the rank axis: ``rank = draw * group_size + member``; only members of one draw meet.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from moesim.engine.program import Instruction, Part
from moesim.evidence import Estimate, Seconds
from moesim.model.ops import AttentionPrefill, Op
from moesim.network.crowding import PortUse
from moesim.network.traffic import Deduplication
from moesim.training.backward import Passes, TrainCost
from moesim.training.overlaps.base import TripleOverlap

NOT_TRAINED = frozenset({"kv_write", "cross_kv_write"})
"""Operations that only a cache needs."""

EXPANDED = frozenset({"q", "q_expand", "kv_expand", "rope"})
"""Operations that turn latents into what latent attention reads."""


@dataclass(frozen=True, slots=True)
class Work:
    """One operation of a piece.

    Attributes
    ----------
    tag : str
        What recomputation calls it (``core_attention``, ``norm``, ``experts``...).
    label : str
        What reports call it.
    passes : Passes
        Seconds of each pass.
    activation : Estimate or None
        Seconds of the activation inside it alone, forward.
    launches : int
        Kernels of its forward pass. [-]
    """

    tag: str
    label: str
    passes: Passes
    activation: Estimate | None = None
    launches: int = 1


@dataclass(frozen=True, slots=True)
class Piece:
    """Local work between two exchanges; ``extra_launches`` kernels are small and cost only the host."""

    work: tuple[Work, ...]
    extra_launches: float = 0.0
    captured: bool = False


@dataclass(frozen=True, slots=True)
class Link:
    """An exchange that the next piece needs.

    Attributes
    ----------
    forward, backward : Part
        Moving the tokens, and later their gradients the other way.
    tag : str
        What recomputation calls it.
    everybody : bool
        All ranks of the draw meet; else each rank's small group runs alike and meets nobody else.
    hides_weight_gradient : bool
        In the backward pass, weight gradients of the piece above run beside it.
    host_waits : bool
        In the forward pass, the host must read counts before it can launch the exchange and what follows.
    memory_s : float or ndarray
        Time that main memory needs for what the exchange reads and writes. [s]
    use : PortUse
        Of a rank's ports while it lasts.
    """

    forward: Part
    backward: Part
    tag: str
    everybody: bool
    hides_weight_gradient: bool
    host_waits: bool = False
    memory_s: Seconds = 0.0
    use: PortUse = PortUse()


@dataclass(frozen=True, slots=True)
class Overlapped:
    """Dispatch, experts and combine of a layer in the order of an overlap policy.

    Attributes
    ----------
    forward, backward, input_gradient : tuple of Instruction
        What each pass launches, from rows that lie ready on the compute stream to their result there.
    weight_gradient : tuple of Part
        What is left for a weight-gradient pass.
    activation : Estimate or None
        Seconds of the activation inside the experts alone, forward.
    forward_s : float
        Of the slowest rank: a weight for layouts. [s]
    host_waits : bool
        The host must read counts before it launches this.
    use : PortUse
        Of a rank's ports by its exchanges while they last.
    """

    forward: tuple[Instruction, ...]
    backward: tuple[Instruction, ...]
    input_gradient: tuple[Instruction, ...]
    weight_gradient: tuple[Part, ...]
    activation: Estimate | None
    forward_s: float
    host_waits: bool
    use: PortUse = PortUse()


Item: TypeAlias = Piece | Link | Overlapped


@dataclass(frozen=True, slots=True)
class TrainBatch:
    """One microbatch: sequences of each attention replica, and their tokens."""

    micro_batch_size: int
    sequence_length: int


@dataclass(frozen=True, slots=True)
class Options:
    """What a training framework does beside the model's own work.

    Attributes
    ----------
    deduplicate : str
        What dispatch sends once.
    dispatch_dtype : str
        Payload of dispatched tokens.
    delayed_weight_gradient : bool
        Weight gradients of the experts run beside the exchange that follows in the backward pass.
    host_reads_counts : bool
        The host waits for each rank's token counts (dropless all-to-all without a device-side protocol).
    capacity_factor : float or None
        None: dropless.
    router_launches : float
        Small kernels of gate, sorting and bookkeeping of a MoE layer beyond those described.
    fused_sinks : bool
        Attention with learnt sinks runs in one kernel; otherwise as separate products and a softmax.
    captured_pieces : bool
        Attention and router run in captured graphs.
    overlap : TripleOverlap or None
        How dispatch, experts and combine lie beside one another; None: one after another.
    """

    deduplicate: Deduplication = "rank"
    dispatch_dtype: str = "bf16"
    delayed_weight_gradient: bool = False
    host_reads_counts: bool = True
    capacity_factor: float | None = None
    router_launches: float = 0.0
    fused_sinks: bool = False
    captured_pieces: bool = False
    overlap: TripleOverlap | None = None


def works(
    ops: Iterable[Op], label: str, cost: TrainCost, *, fused: bool = True, latent: bool = False
) -> tuple[Work, ...]:
    """Priced operations of a piece that reports call ``label``.

    ``fused``: attention in one kernel; ``latent``: queries, keys and values are expanded from latents.
    """
    return tuple(
        Work(
            tag_of(op, label, latent=latent),
            label_of(op, label),
            cost.unfused(op) if isinstance(op, AttentionPrefill) and not fused else cost.op(op),
            launches=cost.launches(op, fused=fused),
        )
        for op in ops
        if op.name not in NOT_TRAINED
    )


def tag_of(op: Op, place: str, *, latent: bool = False) -> str:
    """What recomputation calls an operation of a piece that reports call ``place``.

    A norm before latent compressions or a router is a kernel of its own, others are one with the product
    behind them; queries that no latent holds are projected where keys and values are expanded (Megatron-Core,
    TransformerLayer and ``qkv_up_proj_and_rope_apply``).
    """
    if isinstance(op, AttentionPrefill):
        return "core_attention"
    apart = {"attention_norm": latent, "ffn_norm": place == "router"}
    if apart.get(op.name):
        return "norm"
    if latent and op.name in EXPANDED:
        return "mla_up_proj"
    for prefix, tag in (("ffn_", "dense_ffn"), ("shared_", "shared_experts"), ("router", "router")):
        if op.name.startswith(prefix):
            return tag
    named = {"permute", "unpermute", "head", "loss", "embedding"}
    return op.name if op.name in named else "head" if op.name == "final_norm" else "attention"


def label_of(op: Op, place: str) -> str:
    """What reports call an operation of a piece."""
    if place == "attention":
        return "attention" if isinstance(op, AttentionPrefill) else "attention projections"
    return place


def forward_s(items: Iterable[Item]) -> float:
    """Seconds of a forward pass with nothing overlapped, on the slowest rank: a weight for layouts. [s]"""
    total = 0.0
    for item in items:
        if isinstance(item, Piece):
            total += sum(float(np.max(w.passes.forward.seconds)) for w in item.work)
        elif isinstance(item, Overlapped):
            total += item.forward_s
        else:
            total += float(np.max(item.forward.estimate.seconds))
    return total
