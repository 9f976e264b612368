"""Multi-head latent attention (DeepSeek-V2), with the lightning indexer of DeepSeek-V3.2 and GLM-5.

References
----------
.. [1] DeepSeek-AI, "DeepSeek-V2," arXiv:2405.04434, section 2.1: compressed cache, absorbed decode.
.. [2] DeepSeek-AI, "DeepSeek-V3.2," arXiv:2512.02556, section 2.1: indexer and top-k token choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moesim.model.attention.base import elementwise, total_tokens
from moesim.model.dtypes import bytes_per_element
from moesim.model.ops import AttentionDecode, AttentionPrefill, Gemm, Op, Quantity, Segment, Sharding

INDEX_KEY_DTYPE = "fp8"
INDEX_SCALE_BYTES = 4.0
"""Cached index keys are fp8 with one fp32 scale a token [2]_."""


@dataclass(frozen=True, slots=True)
class Indexer:
    """Cheap scores over all cached tokens that pick the few which attention then reads.

    Attributes
    ----------
    num_heads, head_dim : int
        Index queries; one index key a token is shared by all heads. [-]
    top_k_tokens : int
        Tokens that a query attends to. [tokens]
    """

    num_heads: int
    head_dim: int
    top_k_tokens: int

    def parameters(self, hidden: int, q_lora_rank: int) -> int:
        """Query, key and head-weight projections, and the key's layer norm (replicated on every rank)."""
        query = q_lora_rank * self.num_heads * self.head_dim
        return query + hidden * (self.head_dim + self.num_heads) + 2 * self.head_dim

    @property
    def key_bytes_per_token(self) -> float:
        """Cached index key. [bytes]"""
        return self.head_dim * bytes_per_element(INDEX_KEY_DTYPE) + INDEX_SCALE_BYTES

    def ops(self, hidden: int, q_lora_rank: int, segments: Sequence[Segment], sharding: Sharding) -> list[Op]:
        """Projections and scores (every query against every cached token)."""
        w, a = sharding.dtypes.weights, sharding.dtypes.activations
        tokens = total_tokens(segments)
        result: list[Op] = [
            Gemm("index_q", tokens, self.num_heads * self.head_dim, q_lora_rank, w, a),
            Gemm("index_k", tokens, self.head_dim + self.num_heads, hidden, w, a),
        ]
        for s in segments:
            if s.phase == "decode":
                result.append(
                    AttentionDecode(
                        "index_scores",
                        s.num_sequences,
                        s.context_tokens,
                        s.query_tokens,
                        self.num_heads,
                        1,
                        self.head_dim,
                        0,
                        self.key_bytes_per_token,
                        INDEX_KEY_DTYPE,
                        INDEX_KEY_DTYPE,
                    )
                )
            else:
                result.append(
                    AttentionPrefill(
                        "index_scores",
                        s.num_sequences,
                        s.query_tokens,
                        s.context_tokens,
                        self.num_heads,
                        1,
                        self.head_dim,
                        0,
                        INDEX_KEY_DTYPE,
                        INDEX_KEY_DTYPE,
                    )
                )
        return result


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """Keys and values expanded from one compressed vector a token.

    Decode absorbs the expansions into the query and the result (``kv_lora_rank + qk_rope_dim``
    numbers a token are read, shared by all heads); prefill expands them, cached context included.
    With an indexer both phases attend to the chosen tokens only; the chosen tokens of a prefill
    query are counted like a window of the same size.

    Attributes
    ----------
    num_heads : int
        [-]
    q_lora_rank : int or None
        Rank of the query compression; None when queries are projected directly. [-]
    kv_lora_rank, qk_nope_dim, qk_rope_dim, v_head_dim : int
        [-]
    indexer : Indexer or None
        Token choice before attention.
    """

    num_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_dim: int
    qk_rope_dim: int
    v_head_dim: int
    indexer: Indexer | None = None

    @property
    def kind(self) -> str:
        """``mla``, or ``mla top-k`` with an indexer."""
        return "mla" if self.indexer is None else f"mla top-{self.indexer.top_k_tokens}"

    @property
    def qk_dim(self) -> int:
        """Width of an expanded query or key. [-]"""
        return self.qk_nope_dim + self.qk_rope_dim

    @property
    def latent_dim(self) -> int:
        """Numbers cached for a token. [-]"""
        return self.kv_lora_rank + self.qk_rope_dim

    @property
    def sharded_counts(self) -> Mapping[str, int]:
        """Query heads; the compressed cache is replicated."""
        return {"num_heads": self.num_heads}

    @property
    def cached_tokens_max(self) -> int | None:
        """Everything stays cached: the indexer chooses anew for every query."""
        return None

    def parameters(self, hidden: int, tp: int = 1) -> int:
        """Compressions (replicated), expansions and output (divided by ``tp``), norms. [-]"""
        heads = self.num_heads // tp
        count = hidden * self.latent_dim + self.kv_lora_rank
        count += self.kv_lora_rank * heads * (self.qk_nope_dim + self.v_head_dim)
        count += heads * self.v_head_dim * hidden
        if self.q_lora_rank is None:
            count += hidden * heads * self.qk_dim
        else:
            count += hidden * self.q_lora_rank + self.q_lora_rank
            count += self.q_lora_rank * heads * self.qk_dim
            if self.indexer is not None:
                count += self.indexer.parameters(hidden, self.q_lora_rank)
        return count

    def kv_bytes_per_token(self, kv_dtype: str, tp: int = 1) -> float:
        """Compressed vector, and the index key, on every rank. [bytes]"""
        latent_bytes = self.latent_dim * bytes_per_element(kv_dtype)
        return latent_bytes + (self.indexer.key_bytes_per_token if self.indexer else 0.0)

    def state_bytes(self, tp: int = 1) -> float:
        """None. [bytes]"""
        return 0.0

    def ops(self, hidden: int, segments: Sequence[Segment], sharding: Sharding) -> list[Op]:
        """Compress, expand queries, (choose tokens,) attend absorbed or expanded, project."""
        tp, dtypes = sharding.tp, sharding.dtypes
        w, a = dtypes.weights, dtypes.activations
        tokens = total_tokens(segments)
        heads = self.num_heads // tp
        rank = self.q_lora_rank
        result: list[Op] = []
        if rank is None:
            result.append(Gemm("q", tokens, heads * self.qk_dim, hidden, w, a))
            result.append(Gemm("kv_compress", tokens, self.latent_dim, hidden, w, a))
            result.append(elementwise("latent_norm", tokens, 2 * self.latent_dim, a))
        else:
            result.append(Gemm("qkv_compress", tokens, rank + self.latent_dim, hidden, w, a))
            result.append(elementwise("latent_norm", tokens, 2 * (rank + self.latent_dim), a))
            result.append(Gemm("q_expand", tokens, heads * self.qk_dim, rank, w, a))
        result.append(elementwise("rope", tokens, 2 * (heads + 1) * self.qk_rope_dim, a))
        result.append(elementwise("kv_write", tokens, self.latent_dim, dtypes.kv))
        if self.indexer is not None and rank is not None:
            result += self.indexer.ops(hidden, rank, segments, sharding)
        for segment in segments:
            expand = segment.phase == "prefill" and self.indexer is None
            result += (self._expanded if expand else self._absorbed)(segment, heads, sharding)
        result.append(Gemm("o", tokens, hidden, heads * self.v_head_dim, w, a))
        return result

    def _absorbed(self, segment: Segment, heads: int, sharding: Sharding) -> list[Op]:
        w, a, kv = sharding.dtypes.weights, sharding.dtypes.activations, sharding.dtypes.kv
        cap = self.indexer.top_k_tokens if self.indexer else None
        core: Op
        if segment.phase == "decode":
            core = AttentionDecode(
                "attention",
                segment.num_sequences,
                segment.context_tokens,
                segment.query_tokens,
                heads,
                1,
                self.latent_dim,
                self.kv_lora_rank,
                self.latent_dim * bytes_per_element(kv),
                a,
                kv,
                cap,
            )
        else:
            core = AttentionPrefill(
                "attention",
                segment.num_sequences,
                segment.query_tokens,
                segment.context_tokens,
                heads,
                1,
                self.latent_dim,
                self.kv_lora_rank,
                a,
                kv,
                cap,
            )
        return [
            Gemm("q_absorb", segment.tokens, self.kv_lora_rank, self.qk_nope_dim, w, a, heads),
            core,
            Gemm("v_absorb", segment.tokens, self.v_head_dim, self.kv_lora_rank, w, a, heads),
        ]

    def _expanded(self, segment: Segment, heads: int, sharding: Sharding) -> list[Op]:
        w, a = sharding.dtypes.weights, sharding.dtypes.activations
        visible: Quantity = segment.num_sequences * (segment.query_tokens + segment.context_tokens)
        width = heads * (self.qk_nope_dim + self.v_head_dim)
        return [
            Gemm("kv_expand", visible, width, self.kv_lora_rank, w, a),
            AttentionPrefill(
                "attention",
                segment.num_sequences,
                segment.query_tokens,
                segment.context_tokens,
                heads,
                heads,
                self.qk_dim,
                self.v_head_dim,
                a,
                a,
            ),
        ]
