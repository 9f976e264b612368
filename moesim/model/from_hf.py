"""Any published ``config.json`` as a :class:`~moesim.model.spec.ModelSpec`.

Most architectures differ in a handful of facts (:mod:`moesim.model.families`); the rest is read
here from the fields that publishers share. An architecture that is not known is accepted only if
every needed field is there and no field hints at a structure that is not understood.
"""

from __future__ import annotations

import re
from typing import Any

from moesim.errors import InputError, Problem, did_you_mean
from moesim.files import Tree
from moesim.model.attention import (
    Attention,
    GatedDeltaNet,
    GroupedQueryAttention,
    Indexer,
    LatentAttention,
    Mamba,
)
from moesim.model.config_fields import ALIASES, ConfigFields, expert_counts, layer_count
from moesim.model.families import FAMILIES, GENERIC, NOT_STRUCTURE, STRUCTURE_SIGNS, Family
from moesim.model.spec import Convention, DenseFfn, Ffn, LayerSpec, ModelSpec, MoeSpec, Published
from moesim.model.stored import stored_as
from moesim.model.variant import variant_of, varied

_NEEDED = ("num_layers", "hidden_size", "vocab_size", "num_heads", "num_kv_heads", "width")
_NEEDED_MOE = ("num_experts", "top_k", "expert_width")
_LAYER_TYPES = ("full_attention", "sliding_attention", "chunked_attention", "linear_attention")
_CONVENTIONS: tuple[Convention, ...] = ("all", "without_input_embedding", "without_embeddings")
_NOTHING: tuple[Any, ...] = (None, False, 0, [], {})
_COUNT = re.compile(r"(\d+(?:\.(\d+))?)\s*([MBT]?)")
_SCALE = {"": 0, "M": 6, "B": 9, "T": 12}


def from_hf(tree: Tree, name: str = "") -> ModelSpec:
    """Network described by a published configuration.

    Parameters
    ----------
    tree : Tree
        ``config.json`` as read by :func:`moesim.files.read_tree`. An optional ``moesim`` block holds
        published counts and their source, an optional ``variant`` block a what-if
        (:mod:`moesim.model.variant`).
    name : str
        Name of the result; the file's own ``_name_or_path`` or ``model_type`` by default.

    Raises
    ------
    InputError
        A field is missing or wrong, or the architecture is not understood; all problems at once.
    """
    model = _as_published(tree, name)
    variant = variant_of(tree)
    return model if variant is None else varied(model, variant)


def _as_published(tree: Tree, name: str) -> ModelSpec:
    """Network without the what-if."""
    fields = ConfigFields(tree)
    family = FAMILIES.get(fields.model_type)
    if family is None:
        family = _generic_family(fields)
    if family.encoder_decoder:
        from moesim.model.encoder_decoder import encoder_decoder_model  # noqa: PLC0415 - rarely needed

        return encoder_decoder_model(fields, name or fields.model_type, _published(fields))
    num_layers = layer_count(fields, "num_layers")
    hidden = fields.count("hidden_size")
    mixers = _mixers(fields, family, num_layers, hidden)
    ffns = _ffns(fields, family, num_layers)
    norms = family.norms_per_layer * hidden * (2 if family.norm_bias else 1)
    layers = tuple(LayerSpec(m, f, norms) for m, f in zip(mixers, ffns, strict=True))
    vocab = fields.count("vocab_size")
    extra = (hidden if family.norm_bias else 0) + (vocab if fields.flag("lm_head_bias") else 0)
    tied = bool(fields.raw("tie_word_embeddings", tree.data.get("tie_word_embeddings", False)))
    num_mtp = fields.count("num_mtp_layers", 0, least=0)
    published = _published(fields)
    if family is GENERIC and fields.model_type not in FAMILIES:
        published["source"] += f" (plain mapping: architecture {fields.model_type!r} is not known)"
    fields.check()
    return ModelSpec(
        name or str(tree.data.get("_name_or_path") or fields.model_type),
        hidden,
        vocab,
        layers,
        tied_embeddings=tied,
        num_mtp_layers=num_mtp,
        extra_parameters=extra,
        stored_as=stored_as(fields),
        **published,
    )


def _generic_family(fields: ConfigFields) -> Family:
    """The plain mapping for an unknown ``model_type``, if nothing speaks against it."""
    is_moe = fields.has("num_experts")
    needed = [*_NEEDED, *(_NEEDED_MOE if is_moe else ())]
    absent = [" or ".join(ALIASES[n]) for n in needed if not fields.has(n)]
    known = {key for keys in ALIASES.values() for key in keys} | NOT_STRUCTURE
    strange = sorted(
        key
        for key, value in fields.data.items()
        if key not in known and value not in _NOTHING and any(sign in key for sign in STRUCTURE_SIGNS)
    )
    if not absent and not strange:
        return GENERIC
    kind = fields.model_type
    why = f"architecture {kind!r} is not known{did_you_mean(kind, FAMILIES)}"
    if absent:
        why += f"; to read it as a plain decoder these fields are needed: {', '.join(absent)}"
    if strange:
        why += f"; these fields describe a structure that is not understood: {', '.join(strange)}"
    why += f"; known: {', '.join(sorted(FAMILIES))}"
    raise InputError([Problem("model_type", why, fields.tree.where((*fields.prefix, "model_type")))])


def _mixers(fields: ConfigFields, family: Family, num_layers: int, hidden: int) -> list[Attention]:
    if family.mamba:
        period, offset = fields.count("attn_layer_period"), fields.count("attn_layer_offset", least=0)
        full, mamba = _grouped_query(fields, family, hidden, None), _mamba(fields, hidden)
        return [full if i % period == offset else mamba for i in range(num_layers)]
    if family.latent:
        return [_latent(fields)] * num_layers
    types = fields.per_layer("layer_types", num_layers, _LAYER_TYPES)
    windows = _windows(fields, family, num_layers, types)
    by_window = {w: _grouped_query(fields, family, hidden, w) for w in set(windows)}
    mixers: list[Attention] = [by_window[w] for w in windows]
    if family.linear:
        linear = _gated_delta(fields)
        interval = fields.count("full_attention_interval", 4)
        for i in range(num_layers):
            is_linear = types[i] == "linear_attention" if types else (i + 1) % interval != 0
            mixers[i] = linear if is_linear else mixers[i]
    return mixers


def _windows(
    fields: ConfigFields, family: Family, num_layers: int, types: list[Any] | None
) -> list[int | None]:
    """Window of each layer, from the layer types, a family's pattern, or one setting for all."""
    if types is not None:
        by_type = {
            "sliding_attention": fields.count("window") if "sliding_attention" in types else None,
            "chunked_attention": fields.count("attention_chunk_size")
            if "chunked_attention" in types
            else None,
        }
        return [by_type.get(kind) for kind in types]
    if family.chunked_every is not None:
        chunk = fields.count("attention_chunk_size")
        return [None if (i + 1) % family.chunked_every == 0 else chunk for i in range(num_layers)]
    uses = fields.flag("use_sliding_window", family.sliding)
    if not uses or not fields.has("window"):
        return [None] * num_layers
    window = fields.count("window")
    whole = window >= fields.count("max_position_embeddings", window + 1)
    alternate = family.sliding_alternates
    return [None if whole or (alternate and i % 2) else window for i in range(num_layers)]


def _grouped_query(
    fields: ConfigFields, family: Family, hidden: int, window: int | None
) -> GroupedQueryAttention:
    heads = fields.count("num_heads")
    kv_heads = fields.count("num_kv_heads", heads)
    fields.require(heads % kv_heads == 0, "num_key_value_heads", kv_heads, f"a divisor of {heads} heads")
    # a missing hidden size is told once, not again through what follows from it
    if not fields.has("head_dim") and fields.has("hidden_size"):
        fields.require(
            hidden % heads == 0, "num_attention_heads", heads, f"a divisor of hidden_size {hidden}"
        )
    head_dim = fields.count("head_dim", max(1, hidden // heads))
    bias = fields.flag("attention_bias", family.qkv_bias)
    return GroupedQueryAttention(
        heads,
        kv_heads,
        head_dim,
        fields.count("v_head_dim", head_dim),
        window=window,
        qk_norm=family.qk_norm if fields.flag("use_qk_norm", True) else None,
        qkv_bias=bias,
        output_bias=bias and family.output_bias,
        output_gate=family.output_gate,
        sinks=family.sinks,
    )


def _latent(fields: ConfigFields) -> LatentAttention:
    indexer = None
    if fields.has("index_topk"):
        indexer = Indexer(
            fields.count("index_n_heads"), fields.count("index_head_dim"), fields.count("index_topk")
        )
    return LatentAttention(
        fields.count("num_heads"),
        fields.count("q_lora_rank") if fields.has("q_lora_rank") else None,
        fields.count("kv_lora_rank"),
        fields.count("qk_nope_head_dim"),
        fields.count("qk_rope_head_dim"),
        fields.count("v_head_dim"),
        indexer,
    )


def _gated_delta(fields: ConfigFields) -> GatedDeltaNet:
    return GatedDeltaNet(
        fields.count("linear_num_key_heads"),
        fields.count("linear_num_value_heads"),
        fields.count("linear_key_head_dim"),
        fields.count("linear_value_head_dim"),
        fields.count("linear_conv_kernel_dim"),
    )


def _mamba(fields: ConfigFields, hidden: int) -> Mamba:
    automatic = -(-hidden // 16)
    return Mamba(
        hidden * fields.count("mamba_expand"),
        fields.count("mamba_d_state"),
        fields.count("mamba_d_conv"),
        automatic if fields.raw("mamba_dt_rank") == "auto" else fields.count("mamba_dt_rank", automatic),
    )


def _ffns(fields: ConfigFields, family: Family, num_layers: int) -> list[Ffn]:
    if not fields.has("num_experts") or fields.count("num_experts", least=0) < 2:
        return [DenseFfn(fields.count("width"))] * num_layers
    moe = _moe(fields, family)
    sparse = _is_sparse(fields, family, num_layers)
    if all(sparse):
        return [moe] * num_layers
    dense = DenseFfn(fields.count("dense_width", fields.count("width")))
    return [moe if s else dense for s in sparse]


def _moe(fields: ConfigFields, family: Family) -> MoeSpec:
    num_experts, top_k = expert_counts(fields)
    width = fields.count("expert_width") if fields.has("expert_width") else fields.count("width")
    shared = fields.count("num_shared_experts", family.num_shared_experts, least=0)
    if fields.has("shared_width") and fields.count("shared_width", least=0) > 0:
        shared, shared_width = 1, fields.count("shared_width")
    else:
        shared_width = width
    groups = fields.count("num_groups", 1)
    fields.require(num_experts % groups == 0, "n_group", groups, f"a divisor of {num_experts} experts")
    chooses_with_bias = fields.raw("topk_method") == "noaux_tc"
    return MoeSpec(
        num_experts,
        top_k,
        width,
        num_shared_experts=shared,
        shared_width=shared_width if shared else 0,
        shared_gate=family.shared_gate and shared > 0,
        router_bias=family.router_bias or chooses_with_bias,
        expert_bias=family.expert_bias,
        num_groups=groups,
        top_k_groups=min(groups, fields.count("top_k_groups", 1)),
        latent_size=fields.count("latent_size", 0, least=0) or None,
    )


def _is_sparse(fields: ConfigFields, family: Family, num_layers: int) -> list[bool]:
    """Which layers have routed experts."""
    types = fields.per_layer("mlp_layer_types", num_layers, ("dense", "sparse"))
    if types is not None:
        return [t == "sparse" for t in types]
    listed = fields.per_layer("moe_layer_freq", num_layers, (0, 1), or_count=True)
    if listed is not None:
        return [bool(x) for x in listed]
    if fields.has("expert_layer_period"):
        period, offset = fields.count("expert_layer_period"), fields.count("expert_layer_offset", least=0)
        return [i % period == offset for i in range(num_layers)]
    first = fields.count("first_k_dense_replace", 0, least=0)
    every = fields.count("moe_layer_freq", 1)
    step = fields.count(family.sparse_step_key, 1)
    dense = fields.indices("mlp_only_layers")
    return [
        i >= first and i % every == 0 and (i + 1) % step == 0 and i not in dense for i in range(num_layers)
    ]


def _published(fields: ConfigFields) -> dict[str, Any]:
    """Arguments of :class:`ModelSpec` from the file's ``moesim`` block."""
    block = fields.tree.data.get("moesim") or {}
    if not isinstance(block, dict):
        raise InputError.at("moesim", block, "a mapping of fields", where=fields.tree.where(("moesim",)))
    result: dict[str, Any] = {"source": str(block.get("source", fields.tree.source))}
    for part in ("total", "active"):
        text = block.get(f"published_{part}_parameters")
        if text is None:
            continue
        convention = block.get(f"{part}_convention", "all")
        other = block.get(f"{part}_other_parameters", 0)
        match = _COUNT.fullmatch(str(text).strip())
        if match is None or convention not in _CONVENTIONS or not isinstance(other, int):
            accepted = (
                f"a count as printed, such as '46.7B', a convention among {', '.join(_CONVENTIONS)}, "
                "and a whole number of other parameters"
            )
            field = f"moesim.published_{part}_parameters"
            raise InputError.at(field, (text, convention, other), accepted)
        scale = _SCALE[match[3]]
        unit = 10.0 ** (scale - len(match[2] or ""))
        result[f"published_{part}"] = Published(
            float(match[1]) * 10.0**scale,
            unit,
            convention,
            with_mtp=bool(block.get(f"{part}_with_mtp", False)),
            other_parameters=other,
        )
    return result
