"""What-ifs of a network's structure that no published configuration has a field for.

A ``variant`` block beside the configuration's own fields. What has a field there is changed there:
``num_experts_per_tok``, the number of experts, their width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from moesim.errors import InputError, Problem
from moesim.files.tree import Tree, unknown_field
from moesim.model.attention import Attention, GroupedQueryAttention, NoMixer
from moesim.model.row_memory import MemoryFfn
from moesim.model.spec import DenseFfn, Ffn, LayerSpec, ModelSpec, MoeSpec

BLOCK = "variant"


@dataclass(frozen=True, slots=True)
class Variant:
    """Changes of every layer with experts (of every layer, for attention and memory).

    Attributes
    ----------
    mean_active_experts : float or None
        Routed experts that work for a token on average: top-p routing, null experts (AdaMoE),
        zero-computation experts (MoE++), skipping (MoDES), experts compressed to a scaling. [-]
    latent_size : int or None
        Width in which experts work and tokens travel (MoLE, LatentMoE). [-]
    kept_width : float
        Share of an expert's inner width that is left, on average (HEAPr, CAMERA-P). [-]
    expert_rank : int or None
        Each expert matrix is a product of two of this rank (MC-SMoE) ... [-]
    expert_density : float
        ... plus a sparse matrix with this share of nonzero numbers. [-]
    iterations : int
        Times that a token passes the experts of a layer, routed anew each time
        (Chain-of-Experts, arXiv:2506.18945; ``top_k`` is of one time). [-]
    attention_experts : int
        Attention blocks that all work for a token and are summed (BAM). [-]
    shared_kv : bool
        These have keys and values in common.
    memory : MemoryFfn or None
        Row memory that takes the place of the experts, or stands beside a dense part (UltraMemV2).
    """

    mean_active_experts: float | None = None
    latent_size: int | None = None
    kept_width: float = 1.0
    expert_rank: int | None = None
    expert_density: float = 0.0
    iterations: int = 1
    attention_experts: int = 1
    shared_kv: bool = False
    memory: MemoryFfn | None = None


_COUNTS = {"latent_size": 1, "expert_rank": 1, "iterations": 1, "attention_experts": 1}
_SHARES = {"kept_width", "expert_density"}
_MEMORY_COUNTS = {"keys": 1, "key_dim": 1, "rows": 1, "value_dim": 1, "pre_value_dim": 0}
_MOST = 10**6


def variant_of(tree: Tree) -> Variant | None:
    """The ``variant`` block of a configuration; None where there is none.

    Raises
    ------
    InputError
        Unknown fields and wrong values, all at once.
    """
    block = tree.data.get(BLOCK)
    if block is None:
        return None
    if not isinstance(block, Mapping):
        raise InputError.at(BLOCK, block, "a mapping of fields", where=tree.where((BLOCK,)))
    reader = _Reader(tree)
    found = {name: reader.value(name, value) for name, value in block.items()}
    if reader.problems:
        raise InputError(reader.problems, source=tree.source)
    return Variant(**found)


class _Reader:
    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.problems: list[Problem] = []

    def value(self, name: str, value: Any) -> Any:
        if name == "memory":
            return self.memory(value)
        if name == "shared_kv":
            return self.kept((name,), value, isinstance(value, bool), "true or false")
        if name in _COUNTS:
            return self.count((name,), value, _COUNTS[name])
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if name in _SHARES:
            return self.kept((name,), value, number and 0 <= value <= 1, "a share from 0 to 1")
        if name == "mean_active_experts":
            return self.kept((name,), value, number and 0 < value <= _MOST, "a number of experts above 0")
        self.note((name,), unknown_field(name, [field.name for field in fields(Variant)]))
        return None

    def memory(self, value: Any) -> MemoryFfn | None:
        if not isinstance(value, Mapping):
            self.note(("memory",), f"got {value!r}; accepted: a mapping of {', '.join(_MEMORY_COUNTS)}")
            return None
        for name in value:
            if name not in _MEMORY_COUNTS:
                self.note(("memory", name), unknown_field(name, list(_MEMORY_COUNTS)))
        counts = {}
        for name, least in _MEMORY_COUNTS.items():
            if name in value:
                counts[name] = self.count(("memory", name), value[name], least)
            elif least:
                self.note(("memory", name), "missing (required)")
        if self.problems:
            return None
        memory = MemoryFfn(**counts)
        most = memory.keys**2
        if memory.rows > most:
            self.note(("memory", "rows"), f"got {memory.rows}; accepted: at most {most}, the rows there are")
        return memory

    def count(self, path: tuple[str, ...], value: Any, least: int) -> Any:
        whole = isinstance(value, int) and not isinstance(value, bool)
        accepted = f"a whole number from {least} to {_MOST}"
        return self.kept(path, value, whole and least <= value <= _MOST, accepted)

    def kept(self, path: tuple[str, ...], value: Any, good: bool, accepted: str) -> Any:
        if not good:
            self.note(path, f"got {value!r}; accepted: {accepted}")
        return value

    def note(self, path: tuple[str, ...], text: str) -> None:
        self.problems.append(
            Problem(".".join(("model", BLOCK, *path)), text, self.tree.where((BLOCK, *path)))
        )


def varied(model: ModelSpec, variant: Variant) -> ModelSpec:
    """The network under a variant; published counts are no longer its own.

    Raises
    ------
    InputError
        The network has nothing that the variant could change, all problems at once.
    """
    problems = list(_misfits(model, variant))
    if problems:
        raise InputError(problems)
    layers: list[LayerSpec] = []
    for layer in model.layers:
        changed = replace(
            layer, attention=_mixer(layer.attention, variant), ffn=_ffn(layer, model.hidden_size, variant)
        )
        layers.append(changed)
        if changed.moe is not None:
            repeated = replace(
                changed, attention=NoMixer(), again=True, norm_parameters=layer.norm_parameters // 2
            )
            layers += [repeated] * (variant.iterations - 1)
    return model.with_layers(layers)


def _misfits(model: ModelSpec, variant: Variant) -> list[Problem]:
    problems = []

    def note(name: str, got: object, accepted: str) -> None:
        problems.append(Problem(f"model.{BLOCK}.{name}", f"got {got!r}; accepted: {accepted}"))

    changes = {f.name for f in fields(Variant) if getattr(variant, f.name) != f.default}
    of_experts = changes - {"attention_experts", "shared_kv", "memory"}
    if of_experts and (not model.moe_layers or variant.memory is not None):
        name = min(of_experts)
        note(name, getattr(variant, name), f"a model with routed experts ({model.name} has none left)")
    mean, most = variant.mean_active_experts, model.top_k
    if mean is not None and model.moe_layers and mean > most:
        note("mean_active_experts", mean, f"at most {most}, the experts that a token may choose")
    grouped = all(isinstance(layer.attention, GroupedQueryAttention) for layer in model.layers)
    if variant.attention_experts > 1 and not grouped:
        note("attention_experts", variant.attention_experts, "a model of grouped-query attention only")
    for name in ("iterations", "attention_experts"):
        if model.has_encoder and getattr(variant, name) > 1:
            note(name, getattr(variant, name), "1 in an encoder-decoder model")
    return problems


def _mixer(mixer: Attention, variant: Variant) -> Attention:
    """Attention experts that all work for a token are one attention of their heads together."""
    if variant.attention_experts == 1:
        return mixer
    assert isinstance(mixer, GroupedQueryAttention)  # checked for all layers before
    times = variant.attention_experts
    kv_heads = mixer.num_kv_heads * (1 if variant.shared_kv else times)
    return replace(mixer, num_heads=mixer.num_heads * times, num_kv_heads=kv_heads)


def _ffn(layer: LayerSpec, hidden: int, variant: Variant) -> Ffn | None:
    if variant.memory is not None:
        beside = layer.ffn if isinstance(layer.ffn, DenseFfn) else None
        return layer.ffn and replace(variant.memory, beside=beside)
    moe = layer.moe
    if moe is None:
        return layer.ffn
    latent = moe.latent_size if variant.latent_size is None else variant.latent_size
    moe = replace(moe, latent_size=latent)
    return replace(
        moe,
        expert_width=_equivalent_width(moe, hidden, variant),
        mean_active_experts=variant.mean_active_experts or moe.mean_active_experts,
    )


def _equivalent_width(moe: MoeSpec, hidden: int, variant: Variant) -> int:
    """Inner width of full matrices with as many numbers as an expert's are left with. [-]"""
    width, across = moe.expert_width * variant.kept_width, moe.routed_hidden(hidden)
    if variant.expert_rank is not None:
        width = variant.expert_rank * (1 + width / across) + variant.expert_density * width
    return max(1, round(width))
