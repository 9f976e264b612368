"""Every tensor that a layer's forward pass keeps for its backward pass, by name.

Counted operation by operation, as Korthikanti et al. (arXiv:2205.05198, section 4) do for GPT, for what
Megatron-Core with fused attention and sequence parallelism keeps: the input of a product (for the gradient of
its weights), the inputs of a norm, an activation or attention (for the gradient of their inputs). Dropout is
not trained with. Between tensor-parallel parts a rank holds ``tokens / tp`` rows, inside them ``tokens`` rows
of ``1 / tp`` of the width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from moesim.model.attention import GroupedQueryAttention, LatentAttention, NoMixer
from moesim.model.attention.base import local_kv_heads
from moesim.model.dtypes import Dtypes, bytes_per_element
from moesim.model.ops import Gemm, Segment, Sharding
from moesim.model.row_memory import MemoryFfn
from moesim.model.spec import DenseFfn, LayerSpec, MoeSpec
from moesim.training.recompute import Recompute

FP32_BYTES = bytes_per_element("fp32")
MASK_BYTES = 1

ALWAYS: frozenset[str] = frozenset()
INPUT = "layer input"
ATTENTION, FEED_FORWARD, EXPERTS = "attention", "feed-forward", "experts"


@dataclass(frozen=True, slots=True)
class Rows:
    """How many rows of each kind one rank works on in a microbatch.

    Attributes
    ----------
    tokens : float
        Of a tensor-parallel group: sequences times length over the context-parallel ranks. [tokens]
    copies : float
        Token copies that the rank's experts get, mean or overloaded. [tokens]
    tp, etp : int
        Ranks that share attention and dense parts; that share an expert. [-]
    """

    tokens: float
    copies: float
    tp: int = 1
    etp: int = 1

    @property
    def local(self) -> float:
        """Rows of the residual stream on one rank. [tokens]"""
        return self.tokens / self.tp


@dataclass(frozen=True, slots=True)
class Saved:
    """One kept tensor.

    Attributes
    ----------
    name : str
        What it is.
    piece : str
        Part of the layer: ``attention``, ``feed-forward`` or ``experts``.
    num_bytes : float
        Of one microbatch on one rank. [bytes]
    modules : frozenset of str
        Modules of selective recomputation that make it again.
    """

    name: str
    piece: str
    num_bytes: float
    modules: frozenset[str] = ALWAYS


def saved_tensors(
    layer: LayerSpec, hidden: int, rows: Rows, dtypes: Dtypes, inner_dtype: str = ""
) -> list[Saved]:
    """What one layer keeps of a microbatch when nothing is recomputed.

    Parameters
    ----------
    layer : LayerSpec
    hidden : int
        Width of the model. [-]
    rows : Rows
        Of this rank.
    dtypes : Dtypes
        ``activations`` between operations; inputs of products are kept in the products' own format where that
        is narrower (fp8 training).
    inner_dtype : str
        Format in which inputs of activation functions are kept; by default as they are computed. DeepSeek-V3
        keeps them in fp8 (arXiv:2412.19437, section 3.3.3).
    """
    wide = bytes_per_element(dtypes.activations)
    product = min(wide, bytes_per_element(dtypes.of_mixer().weights))
    is_latent = isinstance(layer.attention, LatentAttention)
    # a norm before latent compressions or a router is a kernel of its own, else it is fused with the product
    apart = frozenset({"layernorm"}) if is_latent else ALWAYS
    tensors = [
        Saved(INPUT, ATTENTION, rows.local * hidden * wide),
        Saved("normed input", ATTENTION, rows.local * hidden * product, apart),
        *_mixer(layer, hidden, rows, dtypes),
    ]
    if layer.ffn is None:
        return tensors
    tensors.append(Saved("residual", FEED_FORWARD, rows.local * hidden * wide))
    if isinstance(layer.ffn, MoeSpec):
        return [*tensors, *_moe(layer.ffn, hidden, rows, dtypes, inner_dtype)]
    if isinstance(layer.ffn, MemoryFfn):
        return [*tensors, *_memory(layer.ffn, hidden, rows, dtypes, inner_dtype)]
    return [*tensors, *_dense(layer.ffn, hidden, rows, dtypes, inner_dtype)]


def kept(tensors: list[Saved], recompute: Recompute, position: int = 0) -> float:
    """Bytes that stay until the backward pass under a policy. [bytes]"""
    if recompute.checkpointed(position):
        inputs = [t.num_bytes for t in tensors if t.name == INPUT]
        return sum(inputs) if recompute.keeps_input(position) else 0.0
    return sum(t.num_bytes for t in tensors if not recompute.drops(t.modules))


def total(tensors: list[Saved], piece: str = "") -> float:
    """Bytes of all tensors, or of those of one piece. [bytes]"""
    return sum(t.num_bytes for t in tensors if piece in ("", t.piece))


def _mixer(layer: LayerSpec, hidden: int, rows: Rows, dtypes: Dtypes) -> Iterator[Saved]:
    mixer = layer.attention
    if isinstance(mixer, GroupedQueryAttention):
        yield from _grouped(mixer, rows, dtypes)
    elif isinstance(mixer, LatentAttention):
        yield from _latent(mixer, rows, dtypes)
    elif not isinstance(mixer, NoMixer):
        yield from _recurrent(layer, hidden, rows, dtypes)
    if layer.cross_attention is not None:
        yield from _grouped(layer.cross_attention, rows, dtypes)


def _grouped(mixer: GroupedQueryAttention, rows: Rows, dtypes: Dtypes) -> Iterator[Saved]:
    wide, product = _formats(dtypes)
    heads, kv_heads = mixer.num_heads // rows.tp, local_kv_heads(mixer.num_kv_heads, rows.tp)
    queries, keys, values = heads * mixer.head_dim, kv_heads * mixer.head_dim, kv_heads * mixer.v_head_dim
    if mixer.qk_norm:
        yield Saved("queries and keys before their norm", ATTENTION, rows.tokens * (queries + keys) * wide)
    yield Saved("queries, keys, values", ATTENTION, rows.tokens * (queries + keys + values) * wide)
    yield from _attended(heads, mixer.v_head_dim, rows, wide, product)
    if mixer.output_gate:
        # the gate, and the gated result that the output projection reads
        gated = rows.tokens * queries * (wide + product)
        yield Saved("output gate", ATTENTION, gated)


def _attended(heads: int, width: int, rows: Rows, wide: float, product: float) -> Iterator[Saved]:
    yield Saved("attention result", ATTENTION, rows.tokens * heads * width * wide)
    if product < wide:
        yield Saved("cast attention result", ATTENTION, rows.tokens * heads * width * product)
    sums = rows.tokens * heads * FP32_BYTES
    yield Saved("softmax sums", ATTENTION, sums, frozenset({"core_attn"}))


def _latent(mixer: LatentAttention, rows: Rows, dtypes: Dtypes) -> Iterator[Saved]:
    wide, product = _formats(dtypes)
    heads = mixer.num_heads // rows.tp
    latent = mixer.latent_dim + (mixer.q_lora_rank or 0)
    yield Saved("latents before their norm", ATTENTION, rows.local * latent * wide)
    yield Saved("normed latents", ATTENTION, rows.local * latent * product)
    expanded = heads * (2 * mixer.qk_dim + mixer.v_head_dim)
    again = frozenset({"mla_up_proj"})
    yield Saved("queries, keys, values", ATTENTION, rows.tokens * expanded * wide, again)
    yield from _attended(heads, mixer.v_head_dim, rows, wide, product)


def _recurrent(layer: LayerSpec, hidden: int, rows: Rows, dtypes: Dtypes) -> Iterator[Saved]:
    """Linear attention: results of all products but the last one, which goes to the residual stream."""
    wide = bytes_per_element(dtypes.activations)
    ops = layer.attention.ops(hidden, [Segment.prefill(1.0, 1.0)], Sharding(rows.tp, dtypes))
    products = [op for op in ops if isinstance(op, Gemm)]
    width = sum(op.n * op.count for op in products[:-1]) + products[-1].k
    yield Saved("projected inputs and result of the scan", ATTENTION, rows.tokens * width * wide)


def _dense(ffn: DenseFfn, hidden: int, rows: Rows, dtypes: Dtypes, inner_dtype: str) -> Iterator[Saved]:
    wide, product = _formats(dtypes)
    inner = bytes_per_element(inner_dtype or dtypes.activations)
    width, ups = ffn.width / rows.tp, 2 if ffn.gated else 1
    again = frozenset({"mlp"})
    yield Saved("normed residual", FEED_FORWARD, rows.local * hidden * product, again)
    yield Saved("up and gate", FEED_FORWARD, rows.tokens * ups * width * inner, again)
    yield Saved("activated", FEED_FORWARD, rows.tokens * width * product, again)


def _memory(memory: MemoryFfn, hidden: int, rows: Rows, dtypes: Dtypes, inner_dtype: str) -> Iterator[Saved]:
    """Queries, scores of both axes, and the rows that each token gathered."""
    wide, product = _formats(dtypes)
    yield Saved("normed residual", FEED_FORWARD, rows.local * hidden * product)
    yield Saved("memory queries", FEED_FORWARD, rows.tokens * 2 * memory.key_dim * product)
    yield Saved("memory scores", FEED_FORWARD, rows.tokens * 2 * memory.keys * wide)
    gathered = memory.rows * memory.row_size / rows.tp
    yield Saved("gathered rows", FEED_FORWARD, rows.tokens * gathered * wide)
    if memory.beside is not None:
        yield from _dense(memory.beside, hidden, rows, dtypes, inner_dtype)


def _moe(moe: MoeSpec, hidden: int, rows: Rows, dtypes: Dtypes, inner_dtype: str) -> Iterator[Saved]:
    wide, product = _formats(dtypes)
    inner = bytes_per_element(inner_dtype or dtypes.activations)
    narrow = min(wide, bytes_per_element(dtypes.experts))
    whole = frozenset({"moe"})
    # router and shared experts read it; a checkpointed MoE part keeps it as its own input
    yield Saved("normed residual", FEED_FORWARD, rows.local * hidden * wide, frozenset({"layernorm"}))
    scores = rows.local * moe.num_experts * (2 * FP32_BYTES + MASK_BYTES)
    yield Saved("router scores and choices", FEED_FORWARD, scores, whole)
    width, ups = moe.expert_width / rows.etp, 2 if moe.gated else 1
    yield Saved("dispatched tokens", EXPERTS, rows.copies * moe.routed_hidden(hidden) * narrow, whole)
    yield Saved("expert up and gate", EXPERTS, rows.copies * ups * width * inner, whole)
    again = frozenset({"moe", "moe_act"})
    yield Saved("expert activated", EXPERTS, rows.copies * width * narrow, again)
    shared = moe.shared
    if shared is not None:
        shared_width, ups = shared.width / rows.tp, 2 if shared.gated else 1
        again = frozenset({"moe", "shared_experts"})
        yield Saved("shared up and gate", FEED_FORWARD, rows.tokens * ups * shared_width * inner, again)
        yield Saved("shared activated", FEED_FORWARD, rows.tokens * shared_width * product, again)


def _formats(dtypes: Dtypes) -> tuple[float, float]:
    """Bytes of a number between operations, and of a kept input of a product."""
    wide = bytes_per_element(dtypes.activations)
    return wide, min(wide, bytes_per_element(dtypes.weights))
