"""What changes of experts cost: bits, width, number, zero-computation and skipped experts.

Pure formulas beside :class:`~moesim.model.spec.MoeSpec`, whose fields (``expert_width``,
``num_experts``, ``top_k``, ``mean_active_experts``) carry the same changes through every other room.
"""

from __future__ import annotations

from moesim.model.parameters import total_parameters
from moesim.model.spec import ModelSpec

BITS_PER_BYTE = 8


def expert_parameters(model: ModelSpec) -> int:
    """Routed experts of all layers. [-]"""
    return sum(
        layer.moe.num_experts * layer.moe.expert_parameters(model.hidden_size)
        for layer in model.layers
        if layer.moe is not None
    )


def mixed_size_bytes(
    *,
    expert_parameters: float,
    expert_bits: float,
    other_parameters: float,
    other_bits: float,
    table_parameters: float = 0.0,
    group: int = 0,
    scale_bits: int = 16,
) -> float:
    """Stored size of a model with experts of a mean bit width. [bytes]

    Parameters
    ----------
    expert_parameters, other_parameters, table_parameters : float
        Routed experts; other projections; embedding and head, which stay in 16 bits. [-]
    expert_bits, other_bits : float
        Bits of an element. [bit]
    group, scale_bits : int
        Elements that share a scale (0: none), and its bits.
    """
    scale = scale_bits / group if group else 0.0
    bits = expert_parameters * (expert_bits + scale) + other_parameters * (other_bits + scale)
    return (bits + 16 * table_parameters) / BITS_PER_BYTE


def mixed_model_bytes(model: ModelSpec, *, expert_bits: float, other_bits: float, group: int) -> float:
    """Stored size of a model: experts of a mean width, the rest but the tables in another. [bytes]"""
    experts, tables = expert_parameters(model), 2 * model.vocab_size * model.hidden_size
    return mixed_size_bytes(
        expert_parameters=experts,
        expert_bits=expert_bits,
        other_parameters=total_parameters(model) - experts - tables,
        other_bits=other_bits,
        table_parameters=tables,
        group=group,
    )


def activated_size_bytes(model: ModelSpec, *, expert_bits: float, other_bits: float, group: int) -> float:
    """Weights that a token passes through, without embedding and head. [bytes]"""
    chosen = sum(
        layer.moe.top_k * layer.moe.expert_parameters(model.hidden_size)
        for layer in model.layers
        if layer.moe is not None
    )
    tables = 2 * model.vocab_size * model.hidden_size
    return mixed_size_bytes(
        expert_parameters=chosen,
        expert_bits=expert_bits,
        other_parameters=total_parameters(model) - expert_parameters(model) - tables,
        other_bits=other_bits,
        group=group,
    )


def true_expert_fraction(weight: float, ffn_experts: int, zero_experts: int) -> float:
    """Share of assignments that go to feed-forward experts beside zero-computation ones (MoE++).

    ``weight`` is that of a feed-forward expert in the balance loss, a zero-computation expert has 1.
    """
    return weight * ffn_experts / (weight * ffn_experts + zero_experts)


def expert_forward_s(*, launch_s: float, num_experts: int, full_s: float, true_fraction: float) -> float:
    """Expert time with a launch for each expert and work in proportion to true assignments. [s]

    ``full_s`` is the time with every assignment true.
    """
    launches = launch_s * num_experts
    return launches + (full_s - launches) * true_fraction


def saved_fraction(*, mean_experts: float, top_k: float, expert_share: float) -> float:
    """FLOPs saved when a token uses ``mean_experts`` instead of ``top_k`` (AdaMoE). [-]"""
    return (1 - mean_experts / top_k) * expert_share
