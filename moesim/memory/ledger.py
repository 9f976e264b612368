"""What every rank of a plan keeps in device memory while a model is served.

Weights are counted exactly, caches from the sequences that are resident at once, working buffers
from the largest step; what engines take beside that (driver context, graphs, fragmentation) is a
stated fraction of the capacity and graded ``assumed``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.model.dtypes import Dtypes, bytes_per_element
from moesim.model.layer_ops import attention_ops, plain_ffn_ops, shared_expert_ops
from moesim.model.ops import Gemm, Op, Segment, Sharding
from moesim.model.parameters import (
    common_layer_bytes,
    embedding_parameters,
    expert_bytes,
    sequence_cache_bytes,
)
from moesim.model.spec import LayerSpec, ModelSpec
from moesim.parallel.plan import Plan

RESERVED_FRACTION = 0.08
"""Assumed: driver context, captured graphs, library workspaces and fragmentation. vLLM's default
``gpu_memory_utilization=0.9`` leaves 10 % for these and for activations, which are counted here."""

_LOGIT_DTYPE = "fp32"


@dataclass(frozen=True, slots=True)
class Occupancy:
    """What is resident at the fullest moment.

    Attributes
    ----------
    num_sequences : float
        Sequences of one attention data-parallel group, over all microbatches in flight. [-]
    context_tokens : float
        Tokens of each, cached and new together. [tokens]
    step_tokens : float
        Most new tokens that one group works on in a step (a prefill chunk, or its decode batch). [tokens]
    redundant_experts : int
        Replica slots of a layer over all ranks of a stage. [-]
    """

    num_sequences: float
    context_tokens: float
    step_tokens: float
    redundant_experts: int = 0


@dataclass(frozen=True)
class Ledger:
    """Bytes by part and rank.

    Attributes
    ----------
    parts : dict of str to ndarray, each ``(rank,)``
        What is kept. [bytes]
    capacity_bytes : float
        Memory of one device. [bytes]
    """

    parts: dict[str, NDArray[np.float64]]
    capacity_bytes: float

    @property
    def need_bytes(self) -> NDArray[np.float64]:
        """All parts together, ``(rank,)``. [bytes]"""
        return np.asarray(np.sum(list(self.parts.values()), axis=0))

    @property
    def free_bytes(self) -> NDArray[np.float64]:
        """Capacity that is left, negative where a rank is over, ``(rank,)``. [bytes]"""
        return self.capacity_bytes - self.need_bytes

    @property
    def fits(self) -> bool:
        """Whether no rank is over."""
        return bool((self.free_bytes >= 0).all())

    @property
    def fullest_rank(self) -> int:
        """First of the ranks that need most."""
        return int(np.argmax(self.need_bytes))


def ledger(
    model: ModelSpec,
    plan: Plan,
    dtypes: Dtypes,
    occupancy: Occupancy,
    *,
    capacity_bytes: float,
    reserved_fraction: float = RESERVED_FRACTION,
) -> Ledger:
    """Memory of every rank.

    Parameters
    ----------
    model : ModelSpec
        Multi-token prediction modules are not loaded.
    plan : Plan
    dtypes : Dtypes
    occupancy : Occupancy
    capacity_bytes : float
        Of one device. [bytes]
    reserved_fraction : float
        Share of the capacity that is not the model's. [-]

    Notes
    -----
    Sharding is that of :mod:`moesim.model.layer_ops`. A tied table is kept twice when its two uses
    lie on different stages.
    """
    stages = [
        _stage_bytes(model, plan, dtypes, occupancy, layers) for layers in plan.stage_layers(model.num_layers)
    ]
    parts = {
        name: np.repeat([stage[name] for stage in stages], plan.stage_size).astype(np.float64)
        for name in stages[0]
    }
    parts["reserve"] = np.full(plan.num_devices, reserved_fraction * capacity_bytes)
    return Ledger(parts, capacity_bytes)


def _stage_bytes(
    model: ModelSpec, plan: Plan, dtypes: Dtypes, occupancy: Occupancy, indices: tuple[int, ...]
) -> dict[str, float]:
    """Bytes by part on each rank of the stage that holds the layers ``indices``."""
    hidden, layers = model.hidden_size, [model.layers[i] for i in indices]
    is_first, is_last = indices[0] == 0, indices[-1] == model.num_layers - 1
    copies = sum((is_first, is_last))
    if model.tied_embeddings and plan.pp == 1:
        copies = 1
    table_bytes = embedding_parameters(model) * bytes_per_element(dtypes.head) / plan.tp
    cache = sequence_cache_bytes(
        model,
        occupancy.context_tokens,
        dtypes.kv,
        tp=plan.tp,
        layer_indices=range(indices[0], indices[-1] + 1),
    )
    return {
        "attention and dense weights": sum(
            common_layer_bytes(layer, hidden, dtypes, tp=plan.tp, ffn_tp=plan.tp) for layer in layers
        ),
        "embedding and head": copies * table_bytes,
        "routed experts": sum(
            slots_per_rank(layer, plan, occupancy.redundant_experts)
            * expert_bytes(layer, hidden, dtypes, moe_tp=plan.moe_tp)
            for layer in layers
        ),
        "kv cache": occupancy.num_sequences * cache,
        "activations": _activation_bytes(model, layers, plan, dtypes, occupancy, is_last=is_last),
        "expert buffers": max(
            _expert_buffer_bytes(layer, hidden, plan, dtypes, occupancy) for layer in layers
        ),
    }


def slots_per_rank(layer: LayerSpec, plan: Plan, redundant_experts: int) -> float:
    """Physical experts of a layer on a rank; 0 where it has none of its own. [-]"""
    return (layer.stored_experts + redundant_experts) / plan.ep if layer.stored_experts else 0.0


def _activation_bytes(
    model: ModelSpec,
    layers: list[LayerSpec],
    plan: Plan,
    dtypes: Dtypes,
    occupancy: Occupancy,
    *,
    is_last: bool,
) -> float:
    """Residual stream, the widest result of a projection, logits of the sampled positions. [bytes]"""
    tokens, hidden = occupancy.step_tokens, model.hidden_size
    sharding = Sharding(plan.tp, dtypes)
    widest = max(
        _widest_result(_dense_ops(layer, hidden, tokens, sharding)) for layer in dict.fromkeys(layers)
    )
    size = (2 * hidden * tokens + widest) * bytes_per_element(dtypes.activations)
    rows = min(tokens, occupancy.num_sequences)
    logits = rows * model.vocab_size / plan.tp * bytes_per_element(_LOGIT_DTYPE)
    return size + (logits if is_last else 0.0)


def _dense_ops(layer: LayerSpec, hidden: int, tokens: float, sharding: Sharding) -> list[Op]:
    ops = attention_ops(layer, hidden, [Segment.prefill(1.0, tokens)], sharding)
    if layer.plain is not None:
        ops += plain_ffn_ops(layer.plain, hidden, tokens, sharding)
    if layer.moe is not None:
        ops += shared_expert_ops(layer.moe, hidden, tokens, sharding)
    return ops


def _widest_result(ops: list[Op]) -> float:
    return max((float(op.rows) * op.n * op.count for op in ops if isinstance(op, Gemm)), default=0.0)


def _expert_buffer_bytes(
    layer: LayerSpec, hidden: int, plan: Plan, dtypes: Dtypes, occupancy: Occupancy
) -> float:
    """Token copies of a rank's experts when routing is even: in, out, and their inner width. [bytes]"""
    moe = layer.moe
    if moe is None:
        return 0.0
    copies = occupancy.step_tokens * plan.attention_dp * moe.experts_per_token / plan.ep
    inner = (3 if moe.gated else 2) * moe.expert_width / plan.moe_tp
    return copies * (2 * moe.routed_hidden(hidden) + inner) * bytes_per_element(dtypes.activations)
