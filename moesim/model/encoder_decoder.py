"""Encoder-decoder Mixture of Experts (Switch Transformers on T5)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from moesim.model.attention import GroupedQueryAttention
from moesim.model.config_fields import ConfigFields, expert_counts, layer_count
from moesim.model.spec import DenseFfn, Ffn, LayerSpec, ModelSpec, MoeSpec


def encoder_decoder_model(fields: ConfigFields, name: str, published: dict[str, Any]) -> ModelSpec:
    """Network of a ``switch_transformers`` configuration.

    Layers alternate dense and sparse: of every ``num_layers / num_sparse_encoder_layers`` the last
    has experts, one chosen a token. Feed-forward parts have two matrices (ReLU) unless the
    configuration says ``is_gated_act``. T5 keeps one table of position biases a stack.

    References
    ----------
    .. [1] W. Fedus, B. Zoph, N. Shazeer, "Switch Transformers," JMLR 23 (2022), arXiv:2101.03961.
    """
    hidden, vocab = fields.count("hidden_size"), fields.count("vocab_size")
    heads, head_dim = fields.count("num_heads"), fields.count("head_dim")
    width, gated = fields.count("width"), fields.flag("is_gated_act")
    self_attention = GroupedQueryAttention(heads, heads, head_dim, head_dim)
    encoder_attention = replace(self_attention, causal=False)
    cross = replace(self_attention, cross=True)
    moe = MoeSpec(*expert_counts(fields, default_top_k=1), width, gated=gated)
    dense = DenseFfn(width, gated)

    def stack(num_layers: int, num_sparse: int, *, encoder: bool) -> list[LayerSpec]:
        step = max(1, num_layers // num_sparse) if num_sparse else num_layers + 1
        result = []
        for index in range(num_layers):
            ffn: Ffn = moe if index % step == step - 1 else dense
            if encoder:
                result.append(LayerSpec(encoder_attention, ffn, 2 * hidden, encoder=True))
            else:
                result.append(LayerSpec(self_attention, ffn, 3 * hidden, cross_attention=cross))
        return result

    num_encoder = layer_count(fields, "num_layers")
    num_decoder = layer_count(fields, "num_decoder_layers", num_encoder)
    layers = [
        *stack(num_encoder, fields.count("num_sparse_encoder_layers", least=0), encoder=True),
        *stack(num_decoder, fields.count("num_sparse_decoder_layers", least=0), encoder=False),
    ]
    buckets = fields.count("relative_attention_num_buckets", 32)
    tied = fields.flag("tie_word_embeddings", True)
    fields.check()
    extra = 2 * buckets * heads + hidden  # position biases of both stacks, the encoder's final norm
    return ModelSpec(
        name, hidden, vocab, tuple(layers), tied_embeddings=tied, extra_parameters=extra, **published
    )
