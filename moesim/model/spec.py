"""What a network is: layers of a token mixer and a feed-forward part, with everything that costs.

Plain frozen descriptions, made by :mod:`moesim.model.from_hf` or by hand. Layers that are alike
share one :class:`LayerSpec` object, so that a cost is worked out once a kind
(:meth:`ModelSpec.layer_kinds`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from moesim.model.attention import Attention, GroupedQueryAttention
from moesim.model.ops import Phase
from moesim.model.row_memory import MemoryFfn

Convention: TypeAlias = Literal["all", "without_input_embedding", "without_embeddings"]
"""Which parameters a publisher counts: every one; not the input look-up table; neither table nor head."""


@dataclass(frozen=True, slots=True)
class Published:
    """A parameter count as its publisher states it.

    Attributes
    ----------
    parameters : float
        The stated number. [-]
    unit : float
        Size of the last stated digit: 1e8 for "46.7 B". [-]
    convention : str
        One of :data:`Convention`: what the statement includes.
    with_mtp : bool
        The statement includes the multi-token prediction modules.
    other_parameters : int
        Parts that the statement includes and a :class:`ModelSpec` does not: vision towers. [-]
    """

    parameters: float
    unit: float
    convention: Convention = "all"
    with_mtp: bool = False
    other_parameters: int = 0

    def agrees(self, count: float, tolerance: float = 0.005) -> bool:
        """Whether ``count`` rounds or truncates to the statement, or lies within ``tolerance`` of it."""
        above = count + self.other_parameters - self.parameters
        return -self.unit / 2 <= above < self.unit or abs(above) <= tolerance * self.parameters


@dataclass(frozen=True, slots=True)
class DenseFfn:
    """Feed-forward part that every token passes.

    Attributes
    ----------
    width : int
        Inner width. [-]
    gated : bool
        Two input matrices instead of one.
    bias : bool
        Biases on every matrix.
    """

    width: int
    gated: bool = True
    bias: bool = False

    def parameters(self, hidden: int) -> int:
        """Matrices and biases. [-]"""
        ups = 2 if self.gated else 1
        return (ups + 1) * hidden * self.width + (ups * self.width + hidden if self.bias else 0)

    def active_parameters(self, hidden: int) -> int:
        """What one token passes: all. [-]"""
        return self.parameters(hidden)


@dataclass(frozen=True, slots=True)
class MoeSpec:
    """Mixture-of-Experts feed-forward part.

    Attributes
    ----------
    num_experts, top_k : int
        Routed experts; experts chosen for a token. [-]
    expert_width : int
        Inner width of a routed expert. [-]
    gated : bool
        Experts have two input matrices instead of one.
    num_shared_experts, shared_width : int
        Experts that every token passes, and the inner width of each. [-]
    shared_gate : bool
        A scalar gate on the shared experts' result (Qwen).
    router_bias : bool
        One number an expert: a bias of the scores, or of the choice (``e_score_correction_bias``).
    expert_bias : bool
        Biases in every expert matrix (gpt-oss).
    num_groups, top_k_groups : int
        Group-limited routing: a token's experts come from ``top_k_groups`` of ``num_groups``. [-]
    mean_active_experts : float or None
        Routed experts that work for a token on average, where that is not ``top_k``: top-p
        routing, zero-computation experts, expert skipping. [-]
    latent_size : int or None
        Width to which a token is projected before it is dispatched, in which the experts work, and
        from which the sum of their results is projected back. [-]
    """

    num_experts: int
    top_k: int
    expert_width: int
    gated: bool = True
    num_shared_experts: int = 0
    shared_width: int = 0
    shared_gate: bool = False
    router_bias: bool = False
    expert_bias: bool = False
    num_groups: int = 1
    top_k_groups: int = 1
    mean_active_experts: float | None = None
    latent_size: int | None = None

    @property
    def experts_per_token(self) -> float:
        """Routed experts that work for a token, on average. [-]"""
        return self.top_k if self.mean_active_experts is None else self.mean_active_experts

    @property
    def shared(self) -> DenseFfn | None:
        """The shared experts as one dense part of their joint width."""
        if not self.num_shared_experts:
            return None
        return DenseFfn(self.num_shared_experts * self.shared_width, self.gated)

    def routed_hidden(self, hidden: int) -> int:
        """Width of a token on its way to the experts and inside them. [-]"""
        return hidden if self.latent_size is None else self.latent_size

    def expert_parameters(self, hidden: int) -> int:
        """One routed expert. [-]"""
        across = self.routed_hidden(hidden)
        return DenseFfn(self.expert_width, self.gated, self.expert_bias).parameters(across)

    def latent_parameters(self, hidden: int) -> int:
        """Projections to and from the width in which experts work. [-]"""
        return 2 * hidden * (self.latent_size or 0)

    def router_parameters(self, hidden: int) -> int:
        """Scores of the experts. [-]"""
        return hidden * self.num_experts + (self.num_experts if self.router_bias else 0)

    def common_parameters(self, hidden: int) -> int:
        """What every token passes: router, latent projections, shared experts and their gate. [-]"""
        count = self.router_parameters(hidden) + self.latent_parameters(hidden)
        shared = self.shared
        if shared is not None:
            count += shared.parameters(hidden) + (hidden if self.shared_gate else 0)
        return count

    def parameters(self, hidden: int) -> int:
        """Everything. [-]"""
        return self.common_parameters(hidden) + self.num_experts * self.expert_parameters(hidden)

    def active_parameters(self, hidden: int) -> float:
        """What one token passes. [-]"""
        return self.common_parameters(hidden) + self.experts_per_token * self.expert_parameters(hidden)


PlainFfn: TypeAlias = DenseFfn | MemoryFfn
Ffn: TypeAlias = DenseFfn | MemoryFfn | MoeSpec


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One layer: norm, token mixer, norm, feed-forward.

    Attributes
    ----------
    attention : Attention
        Token mixer of the layer.
    ffn : DenseFfn, MemoryFfn, MoeSpec or None
        None for a layer that only mixes.
    norm_parameters : int
        All norms of the layer (inside the token mixer not included). [-]
    cross_attention : GroupedQueryAttention or None
        Attention to the encoder's result (encoder-decoder models).
    encoder : bool
        The layer works on the prompt only and is absent from decode.
    again : bool
        The experts, shared ones included, are those of the layer before; only the router is its own.
    """

    attention: Attention
    ffn: Ffn | None
    norm_parameters: int
    cross_attention: GroupedQueryAttention | None = None
    encoder: bool = False
    again: bool = False

    @property
    def moe(self) -> MoeSpec | None:
        """The feed-forward part if it is a Mixture of Experts."""
        return self.ffn if isinstance(self.ffn, MoeSpec) else None

    @property
    def plain(self) -> PlainFfn | None:
        """The feed-forward part if no token is routed."""
        return None if isinstance(self.ffn, MoeSpec) else self.ffn

    @property
    def stored_experts(self) -> int:
        """Routed experts whose weights are this layer's own. [-]"""
        return self.moe.num_experts if self.moe and not self.again else 0

    @property
    def kind(self) -> str:
        """Words for tables: ``'mla + moe 8/256'``."""
        mixer = self.attention.kind + (" + cross" if self.cross_attention else "")
        if self.ffn is None:
            return mixer
        moe = self.moe
        plain = "memory" if isinstance(self.ffn, MemoryFfn) else "dense"
        part = f"moe {moe.top_k}/{moe.num_experts}" if moe else plain
        return f"{'encoder ' if self.encoder else ''}{mixer} + {part}"

    def runs_in(self, phase: Phase, *, encoder_decoder: bool = False) -> bool:
        """Whether the layer's feed-forward part works in ``phase``.

        An encoder reads the prompt in ``prefill``; its decoder then starts at ``decode``.
        """
        if not encoder_decoder:
            return True
        return self.encoder == (phase == "prefill")

    def mixer_parameters(self, hidden: int, tp: int = 1) -> int:
        """Token mixer (and cross attention) on one of ``tp`` ranks. [-]"""
        count = self.attention.parameters(hidden, tp)
        return count + (self.cross_attention.parameters(hidden, tp) if self.cross_attention else 0)

    def kv_bytes_per_token(self, kv_dtype: str, tp: int = 1) -> float:
        """Cache of a token of context on one of ``tp`` ranks, cross attention included. [bytes]"""
        size = self.attention.kv_bytes_per_token(kv_dtype, tp)
        return size + (self.cross_attention.kv_bytes_per_token(kv_dtype, tp) if self.cross_attention else 0.0)

    def parameters(self, hidden: int) -> int:
        """Everything in the layer. [-]"""
        ffn = 0 if self.ffn is None else self.ffn.parameters(hidden)
        if self.again and self.moe is not None:
            ffn = self.moe.router_parameters(hidden)
        return self.mixer_parameters(hidden) + ffn + self.norm_parameters

    def active_parameters(self, hidden: int) -> float:
        """What one token passes. [-]"""
        ffn = 0 if self.ffn is None else (self.ffn.active_parameters(hidden))
        return self.mixer_parameters(hidden) + ffn + self.norm_parameters


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A network.

    Attributes
    ----------
    name : str
    hidden_size, vocab_size : int
        [-]
    layers : tuple of LayerSpec
        In order; encoder layers first. Equal layers are the same object.
    tied_embeddings : bool
        The output head is the input table.
    num_mtp_layers : int
        Multi-token prediction modules beside the network: a projection of two hidden vectors and
        one more layer like the last. Not part of the counts unless asked for. [-]
    extra_parameters : int
        Learned numbers outside layers, tables and final norm (position biases of T5). [-]
    stored_as : str
        Format of the published checkpoint's quantised weights; "" for 16 bits.
    published_total, published_active : Published or None
        What the publisher states.
    source : str
        Where the shapes and statements come from.
    """

    name: str
    hidden_size: int
    vocab_size: int
    layers: tuple[LayerSpec, ...]
    tied_embeddings: bool = False
    num_mtp_layers: int = 0
    extra_parameters: int = 0
    stored_as: str = ""
    published_total: Published | None = None
    published_active: Published | None = None
    source: str = ""

    def __post_init__(self) -> None:
        shared: dict[LayerSpec, LayerSpec] = {}
        object.__setattr__(self, "layers", tuple(shared.setdefault(layer, layer) for layer in self.layers))

    @property
    def num_layers(self) -> int:
        """Layers, encoder and decoder together, without MTP modules. [-]"""
        return len(self.layers)

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Indices of the layers with routed experts."""
        return tuple(i for i, layer in enumerate(self.layers) if layer.moe is not None)

    @property
    def num_experts(self) -> int:
        """Routed experts of an MoE layer, 0 for a dense model (the most, where layers differ). [-]"""
        return max((layer.moe.num_experts for layer in self.layers if layer.moe), default=0)

    @property
    def top_k(self) -> int:
        """Experts chosen for a token, 0 for a dense model (the most, where layers differ). [-]"""
        return max((layer.moe.top_k for layer in self.layers if layer.moe), default=0)

    @property
    def repeats_experts(self) -> bool:
        """Some layers use the experts of the one before."""
        return any(layer.again for layer in self.layer_kinds())

    @property
    def mean_active_experts(self) -> float | None:
        """Routed experts that work for a token on average; None where that is ``top_k`` everywhere. [-]"""
        varying = (layer.moe for layer in self.layer_kinds() if layer.moe and layer.moe.mean_active_experts)
        return next((moe.mean_active_experts for moe in varying), None)

    @property
    def routed_hidden(self) -> int:
        """Width of a token between ranks (the most, where layers differ). [-]"""
        found = (layer.moe.routed_hidden(self.hidden_size) for layer in self.layer_kinds() if layer.moe)
        return max(found, default=self.hidden_size)

    @property
    def expert_widths(self) -> tuple[int, ...]:
        """Inner widths of routed experts, each once. [-]"""
        return tuple(sorted({layer.moe.expert_width for layer in self.layer_kinds() if layer.moe}))

    @property
    def has_encoder(self) -> bool:
        """Encoder-decoder model."""
        return any(layer.encoder for layer in self.layers)

    @property
    def mtp_layer(self) -> LayerSpec | None:
        """Layer inside each MTP module."""
        return self.layers[-1] if self.num_mtp_layers else None

    @property
    def sharded_counts(self) -> Mapping[str, int]:
        """Every head count that tensor parallelism divides, the smallest of each name."""
        counts: dict[str, int] = {}
        for layer in self.layer_kinds():
            for mixer in (layer.attention, layer.cross_attention):
                for name, count in (mixer.sharded_counts if mixer else {}).items():
                    counts[name] = min(count, counts.get(name, count))
        return counts

    def layer_kinds(self) -> dict[LayerSpec, tuple[int, ...]]:
        """Indices of the layers of each kind, in order of first appearance."""
        kinds: dict[LayerSpec, list[int]] = {}
        for index, layer in enumerate(self.layers):
            kinds.setdefault(layer, []).append(index)
        return {layer: tuple(indices) for layer, indices in kinds.items()}

    def layers_in(self, phase: Phase) -> tuple[int, ...]:
        """Indices of the layers that work in ``phase`` (all of them, except in encoder-decoder models)."""
        has_encoder = self.has_encoder
        return tuple(
            i for i, layer in enumerate(self.layers) if layer.runs_in(phase, encoder_decoder=has_encoder)
        )

    def with_layers(self, layers: Iterable[LayerSpec]) -> ModelSpec:
        """The same network with other layers (what-if: more experts a token, fewer layers ...)."""
        return replace(self, layers=tuple(layers), published_total=None, published_active=None)
