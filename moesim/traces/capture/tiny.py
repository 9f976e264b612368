"""Small sizes for the configuration of any family, and a tokenizer that needs no files."""

from __future__ import annotations

import inspect
from typing import Any

VOCABULARY = 259
"""Bytes, and three tokens that no text has."""
_PAD, _BOS, _EOS = 256, 257, 258
_LAYERS = 4
TINY: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "unpadded_vocab_size": VOCABULARY,
    "vocab_size_per_layer_input": VOCABULARY,
    "pad_token_id": _PAD,
    "bos_token_id": _BOS,
    "eos_token_id": _EOS,
    "decoder_start_token_id": _PAD,
    "max_position_embeddings": 4096,
    "num_hidden_layers": _LAYERS,
    "num_layers": _LAYERS,
    "num_decoder_layers": _LAYERS,
    "encoder_layers": _LAYERS,
    "decoder_layers": _LAYERS,
    "hidden_size": 64,
    "d_model": 64,
    "intermediate_size": 64,
    "intermediate_size_mlp": 64,
    "d_ff": 64,
    "d_kv": 16,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "moe_intermediate_size": 32,
    "expert_ffn_hidden_size": 32,
    "ffn_hidden_size": 64,
    "shared_expert_intermediate_size": 32,
    "moe_shared_expert_intermediate_size": 32,
    "moe_shared_intermediate_size": 32,
    "shared_intermediate_size": 32,
    "hidden_size_per_layer_input": 16,
    "router_hidden_size": 32,
    "num_attention_heads": 4,
    "num_heads": 4,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_key_value_heads": 2,
    "kv_channels": 16,
    "head_dim": 16,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "index_topk": 64,
    "index_head_dim": 32,
    "index_n_heads": 2,
    "mamba_d_state": 16,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_dt_rank": 16,
    "use_mamba_kernels": False,
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    "is_moe": True,
    "enable_moe_block": True,
}
"""Values of configuration fields, by name; a class takes those that it knows."""
_CHOICES = 3
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_TOP_K = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "top_k_experts")
_MLA = {"num_key_value_heads": 4}
_FULL_LINEAR = {"layer_types": ["full_attention", "linear_attention"] * 2}
SPECIAL: dict[str, dict[str, Any]] = {
    "deepseek_v2": {"topk_method": "group_limited_greedy", **_MLA},
    "deepseek_v3": _MLA,
    "deepseek_v32": _MLA,
    "axk1": _MLA,
    "axk2": _MLA,
    "mistral4": _MLA,
    "glm4_moe_lite": _MLA,
    "glm_moe_dsa": _MLA,
    "longcat_flash": _MLA,
    "dots1": {"n_shared_experts": 1},
    "granitemoehybrid": {"layer_types": ["attention"] * _LAYERS, "mamba_n_heads": 8, "mamba_d_head": 16},
    "jamba": {
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
    },
    "kimi_linear": {"layer_types": ["linear_attention", "full_attention"] * 2, **_MLA},
    "bailing_hybrid": {"layer_group_size": 2, **_MLA},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "qwen3_next": _FULL_LINEAR,
    "qwen3_5_moe_text": _FULL_LINEAR,
    "minimax": _FULL_LINEAR,
    "dots3_note_text": _MLA,
    "switch_transformers": {"num_sparse_encoder_layers": 2, "num_sparse_decoder_layers": 2},
    "nllb-moe": {"encoder_sparse_step": 2, "decoder_sparse_step": 2},
    "zaya": {"num_experts_per_tok": 1},
    "nemotron_h": {"layers_block_type": ["moe", "attention", "moe", "attention"]},
}
"""What a few families need besides, by their model type."""


def tiny_values(config_class: Any, experts: int | None) -> dict[str, Any]:
    """Small values for the fields that a configuration class has.

    Parameters
    ----------
    config_class : type
        Configuration class of transformers.
    experts : int, optional
        Number of experts, with three choices a token in two groups; None leaves the class's own.
    """
    known = set(inspect.signature(config_class.__init__).parameters)
    known |= set(getattr(config_class, "attribute_map", {}))
    wanted = dict(TINY)
    if experts is not None:
        wanted |= dict.fromkeys(_EXPERTS, experts) | dict.fromkeys(_TOP_K, _CHOICES)
        wanted |= {"n_group": 2, "topk_group": 1, "zero_expert_num": experts // 2}
    special = SPECIAL.get(getattr(config_class, "model_type", ""), {})
    return {name: value for name, value in wanted.items() if name in known} | special


class ByteTokenizer:
    """Tokens are the bytes of the text in UTF-8."""

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        """Token ids under ``input_ids``."""
        return {"input_ids": list(text.encode())}
