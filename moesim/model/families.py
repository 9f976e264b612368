"""What sets each published architecture apart, as data; keyed by the ``model_type`` of its config.

Source of every entry: the reference implementation of that model type in Hugging Face
transformers (``models/<model_type>/modeling_*.py``) or, where it has none, the publisher's own
``modeling_*.py`` beside the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Family:
    """Facts that a config does not state because the code does.

    Attributes
    ----------
    latent, linear, mamba, encoder_decoder : bool
        Token mixers other than plain attention.
    qk_norm : str or None
        As in :class:`~moesim.model.attention.GroupedQueryAttention`.
    qkv_bias : bool
        Default where the config has no ``attention_bias``.
    output_bias : bool
        The output projection has a bias too when the others do.
    output_gate, sinks : bool
        As in :class:`~moesim.model.attention.GroupedQueryAttention`.
    sliding, sliding_alternates : bool
        ``sliding_window`` applies when present; to every second layer only.
    chunked_every : int or None
        Every layer but each ``chunked_every``-th attends within chunks.
    num_shared_experts : int
        Default where the config gives no number.
    shared_gate, router_bias, expert_bias : bool
        As in :class:`~moesim.model.spec.MoeSpec`.
    sparse_step_key : str
        Field that says that every n-th layer has experts.
    norms_per_layer : int
        Hidden-sized norms of a layer.
    norm_bias : bool
        Norms have a bias (LayerNorm).
    """

    latent: bool = False
    linear: bool = False
    mamba: bool = False
    encoder_decoder: bool = False
    qk_norm: Literal["head", "full", "unweighted"] | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    output_gate: bool = False
    sinks: bool = False
    sliding: bool = False
    sliding_alternates: bool = False
    chunked_every: int | None = None
    num_shared_experts: int = 0
    shared_gate: bool = False
    router_bias: bool = False
    expert_bias: bool = False
    sparse_step_key: str = "decoder_sparse_step"
    norms_per_layer: int = 2
    norm_bias: bool = False


GENERIC = Family()
_LATENT = Family(latent=True)
_QWEN3 = Family(qk_norm="head")
_QWEN2_MOE = Family(qkv_bias=True, shared_gate=True)
_QWEN_HYBRID = Family(linear=True, qk_norm="head", output_gate=True, shared_gate=True)

FAMILIES: dict[str, Family] = {
    "llama": Family(output_bias=True),
    "mistral": Family(sliding=True),
    "mixtral": Family(sliding=True),
    "qwen2": Family(qkv_bias=True),
    "mimo": Family(qkv_bias=True),
    "qwen2_moe": _QWEN2_MOE,
    "qwen3": _QWEN3,
    "qwen3_moe": _QWEN3,
    "qwen3_vl_text": _QWEN3,
    "qwen3_vl_moe_text": _QWEN3,
    "qwen3_next": _QWEN_HYBRID,
    "qwen3_5_text": _QWEN_HYBRID,
    "qwen3_5_moe_text": _QWEN_HYBRID,
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    "deepseek_v32": _LATENT,
    "kimi_k2": _LATENT,
    "glm_moe_dsa": _LATENT,
    "glm4_moe": Family(qk_norm="head", router_bias=True),
    "olmoe": Family(qk_norm="full"),
    "phimoe": Family(output_bias=True, norm_bias=True),
    "gpt_oss": Family(
        qkv_bias=True,
        output_bias=True,
        sinks=True,
        sliding=True,
        sliding_alternates=True,
        router_bias=True,
        expert_bias=True,
    ),
    "minimax_m2": Family(qk_norm="full", router_bias=True),
    "llama4_text": Family(
        qk_norm="unweighted",
        chunked_every=4,
        num_shared_experts=1,
        sparse_step_key="interleave_moe_layer_step",
    ),
    "dbrx": GENERIC,
    "grok-1": Family(norms_per_layer=4),
    "jamba": Family(mamba=True),
    "bailing_moe": GENERIC,
    "switch_transformers": Family(encoder_decoder=True),
}
"""Architectures that are understood."""

STRUCTURE_SIGNS = (
    "attention_type",
    "block_config",
    "compress",
    "conv",
    "global_head",
    "hash_layer",
    "hc_",
    "hybrid",
    "index_",
    "kda",
    "latent",
    "linear_",
    "lora_rank",
    "mamba",
    "pattern",
    "recurrent",
    "routed_expert_hidden",
    "sparse_attention",
    "ssm",
    "zero_expert",
)
"""Parts of field names that speak of layers which the plain mapping would get wrong."""

NOT_STRUCTURE = frozenset({"mlp_only_layers", "max_window_layers", "layer_types"})
"""Fields that the plain mapping reads or may ignore although their name looks like structure."""
