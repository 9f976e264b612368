"""Operations of a layer's parts on one rank, from shapes, token counts and the tensor-parallel degree.

Sharding follows what engines do: query, gate and up projections are split by columns, output and
down projections by rows, key/value heads are replicated once ranks outnumber them, compressions
and routers are replicated, table and head are split over the vocabulary. Collectives are not
operations of a layer: the step builder places them between these lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from moesim.model.attention import NoMixer
from moesim.model.attention.base import elementwise, total_tokens
from moesim.model.dtypes import Dtypes
from moesim.model.ops import Gemm, GroupedExperts, MemoryBound, Op, Quantity, Router, Segment, Sharding
from moesim.model.row_memory import MemoryFfn
from moesim.model.spec import DenseFfn, LayerSpec, ModelSpec, MoeSpec, PlainFfn

_ONE_RANK = Sharding()


def norm_op(name: str, hidden: int, tokens: Quantity, dtypes: Dtypes) -> MemoryBound:
    """Residual addition and norm in one kernel: reads both, writes both."""
    return elementwise(name, tokens, 4 * hidden, dtypes.activations)


def attention_ops(
    layer: LayerSpec, hidden: int, segments: Sequence[Segment], sharding: Sharding = _ONE_RANK
) -> list[Op]:
    """Norm, token mixer and cross attention of a layer.

    Parameters
    ----------
    layer : LayerSpec
    hidden : int
        Width of the model. [-]
    segments : sequence of Segment
        What one attention rank works on: projections see all tokens together, attention kernels one
        segment each.
    sharding : Sharding
        Tensor-parallel degree of attention, and formats.
    """
    if isinstance(layer.attention, NoMixer):
        return []
    tokens = total_tokens(segments)
    cross = layer.cross_attention
    sharding = replace(sharding, dtypes=sharding.dtypes.of_mixer())
    if cross is None:
        head = norm_op("attention_norm", hidden, tokens, sharding.dtypes)
        return [head, *layer.attention.ops(hidden, segments, sharding)]
    # a decoder meets the prompt only through its cross attention's keys and values
    decodes = [s for s in segments if s.phase == "decode"]
    result: list[Op] = []
    if decodes:
        result.append(norm_op("attention_norm", hidden, total_tokens(decodes), sharding.dtypes))
        result += layer.attention.ops(hidden, decodes, sharding)
    return [*result, *cross.ops(hidden, segments, sharding)]


def dense_ffn_ops(
    ffn: DenseFfn, hidden: int, tokens: Quantity, sharding: Sharding = _ONE_RANK, *, name: str = "ffn"
) -> list[Op]:
    """Up (and gate), activation, down; without the norm before them."""
    w, a = sharding.dtypes.weights, sharding.dtypes.activations
    width = -(-ffn.width // sharding.tp)
    ups = 2 if ffn.gated else 1
    return [
        Gemm(f"{name}_up", tokens, ups * width, hidden, w, a),
        elementwise(f"{name}_activation", tokens, (ups + 1) * width, a),
        Gemm(f"{name}_down", tokens, hidden, width, w, a),
    ]


def memory_ffn_ops(
    memory: MemoryFfn, hidden: int, tokens: Quantity, sharding: Sharding = _ONE_RANK
) -> list[Op]:
    """Queries, scores of both axes, the rows themselves, the projection back, and the dense part beside.

    Rows are cut by columns over tensor-parallel ranks; queries and scores are on every rank.
    """
    w, a = sharding.dtypes.weights, sharding.dtypes.activations
    value_dim, pre_value_dim = (-(-n // sharding.tp) for n in (memory.value_dim, memory.pre_value_dim))
    result: list[Op] = [
        Gemm("memory_query", tokens, 2 * memory.key_dim, hidden, w, a),
        Gemm("memory_scores", tokens, memory.keys, memory.key_dim, w, a, count=2),
        elementwise("memory_rows", tokens, memory.rows * (value_dim + pre_value_dim), w),
        Gemm("memory_out", tokens, hidden, value_dim, w, a),
    ]
    if pre_value_dim:
        result.append(Gemm("memory_pre_value", tokens, pre_value_dim, hidden, w, a))
    return result + (dense_ffn_ops(memory.beside, hidden, tokens, sharding) if memory.beside else [])


def plain_ffn_ops(ffn: PlainFfn, hidden: int, tokens: Quantity, sharding: Sharding = _ONE_RANK) -> list[Op]:
    """A feed-forward part without routing; without the norm before it."""
    if isinstance(ffn, MemoryFfn):
        return memory_ffn_ops(ffn, hidden, tokens, sharding)
    return dense_ffn_ops(ffn, hidden, tokens, sharding)


def shared_expert_ops(
    moe: MoeSpec, hidden: int, tokens: Quantity, sharding: Sharding = _ONE_RANK
) -> list[Op]:
    """Shared experts as one dense part, their gate and the addition to the routed result; may be empty."""
    shared = moe.shared
    if shared is None:
        return []
    a = sharding.dtypes.activations
    result = dense_ffn_ops(shared, hidden, tokens, sharding, name="shared")
    if moe.shared_gate:
        result.append(Gemm("shared_gate", tokens, 1, hidden, sharding.dtypes.weights, a))
    result.append(elementwise("shared_add", tokens, 3 * hidden, a))
    return result


def router_ops(moe: MoeSpec, hidden: int, tokens: Quantity, dtypes: Dtypes) -> list[Op]:
    """Gate scores and the choice of experts (replicated over tensor-parallel ranks).

    With a latent width also the projections to it and, after the experts, back.
    """
    w, a, latent = dtypes.weights, dtypes.activations, moe.latent_size
    scores = Router("router", tokens, hidden, moe.num_experts, moe.top_k, dtypes.head, a)
    if latent is None:
        return [scores]
    return [
        scores,
        Gemm("latent_down", tokens, latent, hidden, w, a),
        Gemm("latent_up", tokens, hidden, latent, w, a),
    ]


def permute_op(
    moe: MoeSpec, hidden: int, tokens: Quantity, token_copies: Quantity, dtypes: Dtypes
) -> MemoryBound:
    """Gather of tokens into expert order: ``tokens`` read, one row written a copy."""
    return elementwise("permute", tokens + token_copies, moe.routed_hidden(hidden), dtypes.activations)


def unpermute_op(
    moe: MoeSpec, hidden: int, tokens: Quantity, token_copies: Quantity, dtypes: Dtypes
) -> MemoryBound:
    """Weighted sum of the copies back into token order: one row read a copy, ``tokens`` written."""
    return elementwise("unpermute", tokens + token_copies, moe.routed_hidden(hidden), dtypes.activations)


def expert_op(
    moe: MoeSpec, hidden: int, num_local_experts: int, dtypes: Dtypes, *, moe_tp: int = 1
) -> GroupedExperts:
    """Grouped feed-forward of the routed experts on one of ``moe_tp`` ranks."""
    across, width = moe.routed_hidden(hidden), -(-moe.expert_width // moe_tp)
    return GroupedExperts(
        "experts", across, width, moe.gated, dtypes.experts, dtypes.activations, num_local_experts, moe.top_k
    )


def embedding_ops(model: ModelSpec, tokens: Quantity, dtypes: Dtypes) -> list[Op]:
    """Look-up: a row read and written a token."""
    return [elementwise("embedding", tokens, 2 * model.hidden_size, dtypes.activations)]


def head_ops(model: ModelSpec, rows: Quantity, sharding: Sharding = _ONE_RANK) -> list[Op]:
    """Final norm and logits of ``rows`` positions (one a sequence, when serving)."""
    dtypes = sharding.dtypes
    n = -(-model.vocab_size // sharding.tp)
    return [
        norm_op("final_norm", model.hidden_size, rows, dtypes),
        Gemm("head", rows, n, model.hidden_size, dtypes.head, dtypes.activations),
    ]


def forward_flops_per_token(model: ModelSpec, context_tokens: int) -> float:
    """Work of a token in a forward pass over sequences of ``context_tokens``, for MFU. [FLOP]

    Every matrix that the token passes (head included, look-up not), causal attention averaged over
    the positions of the sequence, scans of linear attention; nothing recomputed. In an
    encoder-decoder model both stacks see a sequence of this length (teacher forcing).
    """
    hidden = model.hidden_size
    sequence = [Segment.prefill(1.0, float(context_tokens))]
    tokens = float(context_tokens)
    total = 0.0
    for layer, indices in model.layer_kinds().items():
        work = _flops(layer.attention.ops(hidden, sequence, _ONE_RANK))
        if layer.cross_attention is not None:
            every_query = replace(layer.cross_attention, cross=False, causal=False)
            work += _flops(every_query.ops(hidden, sequence, _ONE_RANK))
        if layer.plain is not None:
            work += _flops(plain_ffn_ops(layer.plain, hidden, tokens))
        moe = layer.moe
        if moe is not None:
            work += _flops(router_ops(moe, hidden, tokens, _ONE_RANK.dtypes))
            work += _flops(shared_expert_ops(moe, hidden, tokens))
            copies = [tokens * moe.experts_per_token]
            work += float(expert_op(moe, hidden, 1, _ONE_RANK.dtypes).flops(copies))
        total += len(indices) * work
    return (total + _flops(head_ops(model, tokens))) / tokens


def _flops(ops: Sequence[Op]) -> float:
    return sum(float(op.flops) for op in ops)
