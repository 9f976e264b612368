"""Operations of a layer: hand-worked shapes, work and traffic."""

import numpy as np
import pytest

from moesim.model import Dtypes, load
from moesim.model.layer_ops import (
    attention_ops,
    dense_ffn_ops,
    expert_op,
    forward_flops_per_token,
    head_ops,
    router_ops,
    shared_expert_ops,
)
from moesim.model.ops import AttentionDecode, AttentionPrefill, Gemm, Segment, Sharding, causal_pairs
from moesim.model.parameters import active_parameters
from moesim.model.spec import DenseFfn


def by_name(ops):
    return {op.name: op for op in ops}


def test_gemm_by_hand():
    op = Gemm("up", 4, n=8, k=16, weight_dtype="bf16", activation_dtype="bf16")
    assert op.flops == 2 * 4 * 8 * 16
    assert op.weight_bytes == 8 * 16 * 2
    assert op.moved_bytes == 8 * 16 * 2 + 4 * (8 + 16) * 2


def test_empty_gemm_moves_nothing():
    op = Gemm("up", np.array([0, 1]), n=8, k=16, weight_dtype="bf16", activation_dtype="bf16")
    np.testing.assert_array_equal(op.moved_bytes, [0, 8 * 16 * 2 + 24 * 2])


def test_weight_scales_are_read_too():
    plain = Gemm("up", 1, 128, 128, "fp8", "bf16")
    scaled = Gemm("up", 1, 128, 128, "fp8_block", "bf16")
    assert scaled.weight_bytes - plain.weight_bytes == pytest.approx(4)


def test_mla_decode_reads_576_numbers_a_token_once_for_all_heads():
    layer = load("deepseek_v3").layers[-1]
    op = by_name(attention_ops(layer, 7168, [Segment.decode(32, 4095)]))["attention"]
    assert isinstance(op, AttentionDecode)
    assert (op.num_heads, op.num_kv_heads, op.qk_dim, op.v_dim) == (128, 1, 576, 512)
    assert op.kv_bytes_per_token == 576 * 2
    assert op.flops == 32 * 4096 * 2 * 128 * (576 + 512)
    assert op.moved_bytes == 32 * (4096 * 1152 + 128 * (576 + 512) * 2)


def test_mla_prefill_expands_the_cached_context():
    layer = load("deepseek_v3").layers[-1]
    ops = by_name(attention_ops(layer, 7168, [Segment.prefill(2, 100, 50)]))
    assert ops["kv_expand"].rows == 2 * 150
    assert isinstance(ops["attention"], AttentionPrefill)
    assert (ops["attention"].qk_dim, ops["attention"].v_dim) == (192, 128)


def test_projections_of_a_mixed_step_see_all_tokens_together():
    layer = load("qwen3_30b_a3b").layers[0]
    ops = attention_ops(layer, 2048, [Segment.decode(64, 1000), Segment.prefill(1, 448)])
    assert by_name(ops)["qkv"].rows == 512
    assert [type(op) for op in ops if op.name == "attention"] == [AttentionDecode, AttentionPrefill]


def test_qkv_is_split_by_columns_and_output_by_rows():
    layer = load("mixtral_8x7b").layers[0]
    ops = by_name(attention_ops(layer, 4096, [Segment.decode(8, 100)], Sharding(tp=4)))
    assert (ops["qkv"].n, ops["qkv"].k) == ((32 + 2 * 8) * 128 // 4, 4096)
    assert (ops["o"].n, ops["o"].k) == (4096, 1024)


def test_kv_heads_are_replicated_beyond_their_number():
    layer = load("qwen3_30b_a3b").layers[0]
    ops = by_name(attention_ops(layer, 2048, [Segment.decode(8, 100)], Sharding(tp=8)))
    assert ops["qkv"].n == (32 // 8 + 2) * 128
    assert ops["attention"].num_kv_heads == 1


def test_experts_read_the_weights_of_those_that_have_tokens():
    moe = load("mixtral_8x7b").layers[0].moe
    op = expert_op(moe, 4096, 4, Dtypes())
    counts = np.array([[0, 0, 0, 3], [1, 1, 1, 0]])
    one = 3 * 4096 * 14336
    np.testing.assert_allclose(op.flops(counts), [2 * one * 3] * 2)
    io_bytes = 3 * (2 * 4096 + 6 * 14336) * 2
    np.testing.assert_allclose(op.moved_bytes(counts), [one * 2 + io_bytes, 3 * one * 2 + io_bytes])


def test_shared_experts_run_as_one_wide_part():
    moe = load("deepseek_v3").layers[-1].moe
    ops = by_name(shared_expert_ops(moe, 7168, 10))
    assert ops["shared_up"].n == 2 * 2048
    assert shared_expert_ops(load("mixtral_8x7b").layers[0].moe, 4096, 10) == []


def test_dense_and_head_by_hand():
    ops = by_name(dense_ffn_ops(DenseFfn(64), 16, 3, Sharding(tp=2)))
    assert (ops["ffn_up"].n, ops["ffn_down"].k) == (64, 32)
    head = by_name(head_ops(load("mixtral_8x7b"), 5, Sharding(tp=4)))["head"]
    assert (head.rows, head.n, head.k) == (5, 8000, 4096)


def test_router_scores_every_expert():
    moe = load("deepseek_v3").layers[-1].moe
    (op,) = router_ops(moe, 7168, np.array([0.0, 2.0]), Dtypes())
    np.testing.assert_array_equal(op.flops, [0, 2 * 2 * 7168 * 256])
    assert op.moved_bytes[0] == 0
    assert op.moved_bytes[1] > 7168 * 256 * 2


@pytest.mark.parametrize(("q", "c", "w"), [(5, 0, None), (5, 3, 4), (1, 10, 4), (7, 2, 100), (3, 9, 2)])
def test_causal_pairs_by_counting(q, c, w):
    expected = sum(min(c + i, w or c + i) for i in range(1, q + 1))
    assert causal_pairs(q, c, w) == expected


@pytest.mark.parametrize("name", ["mixtral_8x7b", "qwen3_30b_a3b", "deepseek_v3"])
def test_forward_flops_are_twice_the_matrices_plus_attention(name):
    """At one token of context attention is negligible; norms and biases are below 0.1 %."""
    model = load(name)
    matrices = active_parameters(model, "without_input_embedding")
    assert forward_flops_per_token(model, 1) == pytest.approx(2 * matrices, rel=2e-3)


def test_attention_flops_grow_with_half_the_context():
    model = load("mixtral_8x7b")
    per_pair = 2 * 32 * (128 + 128) * 32  # heads x (qk + v) x layers
    growth = forward_flops_per_token(model, 4001) - forward_flops_per_token(model, 1)
    assert growth == pytest.approx(per_pair * 2000, rel=1e-9)
