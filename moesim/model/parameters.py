"""Counts of parameters and bytes: total, active, by part, by format."""

from __future__ import annotations

from moesim.model.dtypes import Dtypes, bytes_per_element
from moesim.model.spec import Convention, LayerSpec, ModelSpec


def embedding_parameters(model: ModelSpec) -> int:
    """Input table. [-]"""
    return model.vocab_size * model.hidden_size


def head_parameters(model: ModelSpec) -> int:
    """Output head; 0 when it is the input table. [-]"""
    return 0 if model.tied_embeddings else embedding_parameters(model)


def mtp_parameters(model: ModelSpec) -> int:
    """One multi-token prediction module without the table and head it shares with the network. [-]

    A projection from two hidden vectors to one, a layer, the norms of both inputs and of the result
    (DeepSeek-V3 technical report, arXiv:2412.19437, section 2.2).
    """
    hidden, layer = model.hidden_size, model.mtp_layer
    if layer is None:
        return 0
    return 2 * hidden * hidden + layer.parameters(hidden) + 3 * hidden


def total_parameters(model: ModelSpec, convention: Convention = "all", *, with_mtp: bool = False) -> int:
    """Stored parameters of the language model (vision towers are never part of a spec). [-]

    ``convention`` leaves out the input table, or table and head. A tied table does the work of the
    head, so ``without_input_embedding`` keeps it.
    """
    hidden = model.hidden_size
    count = sum(len(indices) * layer.parameters(hidden) for layer, indices in model.layer_kinds().items())
    count += model.extra_parameters + hidden
    count += model.num_mtp_layers * mtp_parameters(model) if with_mtp else 0
    return count + _tables(model, convention)


def active_parameters(model: ModelSpec, convention: Convention = "all") -> float:
    """Parameters that one token passes. [-]"""
    hidden = model.hidden_size
    count = sum(
        len(indices) * layer.active_parameters(hidden) for layer, indices in model.layer_kinds().items()
    )
    return count + model.extra_parameters + hidden + _tables(model, convention)


def _tables(model: ModelSpec, convention: Convention) -> int:
    table = embedding_parameters(model)
    if convention == "without_embeddings":
        return 0
    if convention == "without_input_embedding":
        return table
    return table + head_parameters(model)


def stated_total(model: ModelSpec) -> int:
    """Total in the convention of the model's publisher. [-]"""
    stated = model.published_total
    if stated is None:
        return total_parameters(model)
    return total_parameters(model, stated.convention, with_mtp=stated.with_mtp)


def stated_active(model: ModelSpec) -> float:
    """Active parameters in the convention of the model's publisher. [-]"""
    stated = model.published_active
    return active_parameters(model, stated.convention if stated else "all")


def common_layer_bytes(
    layer: LayerSpec, hidden: int, dtypes: Dtypes, *, tp: int = 1, ffn_tp: int = 1
) -> float:
    """Weights of a layer without routed experts on one rank. [bytes]

    Parameters
    ----------
    tp, ffn_tp : int
        Tensor parallelism of the token mixer; of the dense or shared feed-forward part. [-]
    """
    weight = bytes_per_element(dtypes.weights)
    size = layer.mixer_parameters(hidden, tp) * bytes_per_element(dtypes.of_mixer().weights)
    size += layer.norm_parameters * weight
    moe = layer.moe
    if moe is not None:
        if layer.again:
            return size + moe.router_parameters(hidden) * bytes_per_element(dtypes.head)
        latent = moe.latent_parameters(hidden)
        router = moe.common_parameters(hidden) - latent
        size += latent * weight
        shared = moe.shared
        if shared is not None:
            router -= shared.parameters(hidden)
            size += shared.parameters(hidden) * weight / ffn_tp
        return size + router * bytes_per_element(dtypes.head)
    return size + (layer.ffn.parameters(hidden) * weight / ffn_tp if layer.ffn else 0.0)


def expert_bytes(layer: LayerSpec, hidden: int, dtypes: Dtypes, *, moe_tp: int = 1) -> float:
    """Weights of one routed expert (its part on one of ``moe_tp`` ranks); 0 in a dense layer. [bytes]"""
    moe = layer.moe
    if moe is None:
        return 0.0
    return moe.expert_parameters(hidden) * bytes_per_element(dtypes.experts) / moe_tp


def weight_bytes(model: ModelSpec, dtypes: Dtypes, *, with_mtp: bool = False) -> float:
    """Everything on one device. [bytes]"""
    hidden = model.hidden_size

    def layer_bytes(layer: LayerSpec) -> float:
        own = layer.stored_experts * expert_bytes(layer, hidden, dtypes)
        return common_layer_bytes(layer, hidden, dtypes) + own

    size = sum(len(indices) * layer_bytes(layer) for layer, indices in model.layer_kinds().items())
    tables = embedding_parameters(model) + head_parameters(model) + hidden + model.extra_parameters
    size += tables * bytes_per_element(dtypes.head)
    if with_mtp and model.mtp_layer is not None:
        projection = (mtp_parameters(model) - model.mtp_layer.parameters(hidden)) * bytes_per_element(
            dtypes.head
        )
        size += model.num_mtp_layers * (layer_bytes(model.mtp_layer) + projection)
    return size


def kv_bytes_per_token(model: ModelSpec, kv_dtype: str) -> float:
    """Cache that one more token of context adds while no window is full, over all layers. [bytes]"""
    return sum(len(i) * layer.kv_bytes_per_token(kv_dtype) for layer, i in model.layer_kinds().items())


def sequence_cache_bytes(
    model: ModelSpec, context_tokens: float, kv_dtype: str, *, tp: int = 1, layer_indices: range | None = None
) -> float:
    """Cache and recurrent state of one sequence on one rank. [bytes]

    Parameters
    ----------
    context_tokens : float
        Tokens of the sequence; a layer with a window keeps no more than its window. [tokens]
    tp : int
        Tensor parallelism of the token mixers. [-]
    layer_indices : range, optional
        Layers of one pipeline stage; all by default.
    """
    size = 0.0
    for layer, indices in model.layer_kinds().items():
        here = len(indices) if layer_indices is None else sum(i in layer_indices for i in indices)
        for mixer in (layer.attention, layer.cross_attention):
            if mixer is None or not here:
                continue
            cap = mixer.cached_tokens_max
            tokens = context_tokens if cap is None else min(context_tokens, cap)
            size += here * (tokens * mixer.kv_bytes_per_token(kv_dtype, tp) + mixer.state_bytes(tp))
    return size
