"""Token mixers beyond plain attention: shapes, states and bytes by hand."""

import pytest

from moesim.errors import InputError
from moesim.files import Tree, read_tree
from moesim.model import FORMATS, Dtypes, bytes_per_element, from_hf, load
from moesim.model.layer_ops import attention_ops
from moesim.model.load import BUNDLED
from moesim.model.ops import AttentionDecode, Segment, Sharding
from moesim.model.parameters import (
    active_parameters,
    sequence_cache_bytes,
    stated_active,
    total_parameters,
    weight_bytes,
)
from moesim.model.spec import MoeSpec


def named(ops):
    return {op.name: op for op in ops}


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("bf16", 16),
        ("fp8", 8),
        ("fp8_block", 8 + 32 / 16384),
        ("mxfp4", 4.25),
        ("nvfp4", 4.5),
        ("int4", 4.15625),
    ],
)
def test_bits_per_weight(name, bits):
    assert FORMATS[name].bits_per_element == bits
    assert bytes_per_element(name) == bits / 8


def test_unknown_format_lists_those_known():
    with pytest.raises(
        InputError, match=r"dtypes.experts: got 'fp5'; accepted: one of fp32, bf16.*did you mean"
    ):
        Dtypes(experts="fp5")


def test_gpt_oss_checkpoint_size():
    """12.8 GiB for 20b and 60.8 GiB for 120b (gpt-oss model card, arXiv:2508.10925, table 1)."""
    for name, gib in (("gpt_oss_20b", 12.8), ("gpt_oss_120b", 60.8)):
        assert weight_bytes(load(name), Dtypes(experts="mxfp4")) / 2**30 == pytest.approx(gib, rel=0.005)


def test_delta_net_state_and_decode_traffic():
    layer = load("qwen3_next_80b_a3b").layers[0]
    state = 32 * 128 * 128 * 4 + 3 * (2 * 16 * 128 + 32 * 128) * 2
    assert layer.attention.state_bytes() == state
    assert layer.attention.state_bytes(tp=4) == state / 4
    update = named(attention_ops(layer, 2048, [Segment.decode(5, 10_000)]))["state_update"]
    assert update.moved_bytes == 5 * (2 * state + (8192 + 4096) * 2)
    assert update.flops == 5 * 32 * 6 * 128 * 128


def test_delta_net_prefill_costs_more_work_per_token_but_touches_the_state_once():
    layer = load("qwen3_next_80b_a3b").layers[0]
    prefill = named(attention_ops(layer, 2048, [Segment.prefill(1, 100)]))["state_update"]
    decode = named(attention_ops(layer, 2048, [Segment.decode(100, 0)]))["state_update"]
    assert prefill.flops > decode.flops
    assert prefill.moved_bytes < decode.moved_bytes


def test_mamba_state():
    assert load("jamba_v0_1").layers[0].attention.state_bytes() == 8192 * 16 * 4 + 3 * 8192 * 2


def test_automatic_step_rank_of_mamba():
    fields = read_tree(BUNDLED / "jamba_v0_1.json").data
    assert from_hf(Tree(fields | {"mamba_dt_rank": "auto"})).layers == load("jamba_v0_1").layers


def test_indexer_limits_what_attention_reads_but_scores_everything():
    layer = load("glm_5").layers[-1]
    ops = attention_ops(layer, 6144, [Segment.decode(1, 99_999)])
    core, scores = named(ops)["attention"], named(ops)["index_scores"]
    assert core.attended_tokens == 2048
    assert scores.attended_tokens == 100_000
    assert scores.moved_bytes == pytest.approx(100_000 * 132 + 32 * 128)
    assert core.flops == 2048 * 2 * 64 * (576 + 512)


def test_cached_bytes_of_an_indexed_layer():
    assert load("glm_5").layers[0].kv_bytes_per_token("bf16") == 576 * 2 + 128 + 4


def test_drafted_tokens_share_one_read_of_the_cache():
    layer = load("mixtral_8x7b").layers[0]
    one, four = (
        named(attention_ops(layer, 4096, [Segment.decode(8, 4000, query)]))["attention"] for query in (1, 4)
    )
    assert isinstance(one, AttentionDecode)
    assert four.moved_bytes < 1.1 * one.moved_bytes
    assert four.flops == pytest.approx(4 * one.flops, rel=1e-3)


def test_decoder_meets_the_prompt_through_cross_attention_only():
    layer = load("switch_base_8").layers[-1]
    prefill = named(attention_ops(layer, 768, [Segment.prefill(2, 50)]))
    assert list(prefill) == ["cross_kv", "cross_kv_write"]
    decode = named(attention_ops(layer, 768, [Segment.decode(2, 50)]))
    assert {"qkv", "cross_q", "cross_o"} <= set(decode)
    assert "cross_kv" not in decode


def test_an_encoder_sees_both_ways_and_caches_nothing():
    layer = load("switch_base_8").layers[0]
    core = named(attention_ops(layer, 768, [Segment.prefill(1, 10)]))["attention"]
    assert core.pairs == 100
    assert layer.kv_bytes_per_token("bf16") == 0


def test_cache_of_a_stage_is_its_layers():
    model = load("gpt_oss_20b")
    halves = [
        sequence_cache_bytes(model, 1000, "bf16", layer_indices=part) for part in (range(12), range(12, 24))
    ]
    assert sum(halves) == sequence_cache_bytes(model, 1000, "bf16")


def test_fewer_active_experts_on_average():
    """Null experts and top-p routing change what is active, not what is stored."""
    plain = MoeSpec(64, 8, 32)
    skipping = MoeSpec(64, 8, 32, mean_active_experts=5.5)
    assert plain.parameters(16) == skipping.parameters(16)
    assert plain.active_parameters(16) - skipping.active_parameters(16) == 2.5 * plain.expert_parameters(16)


def test_counting_conventions():
    model = load("gpt_oss_20b")
    table = 201_088 * 2880
    assert total_parameters(model) - total_parameters(model, "without_input_embedding") == table
    assert total_parameters(model) - total_parameters(model, "without_embeddings") == 2 * table
    assert stated_active(model) == active_parameters(model, "without_input_embedding")


def test_what_if_keeps_everything_but_the_layers():
    model = load("mixtral_8x7b")
    half = model.with_layers(model.layers[:16])
    assert half.num_layers == 16
    assert half.published_total is None
    assert total_parameters(half) < total_parameters(model)


def test_sharding_defaults_to_one_rank_in_bf16():
    assert Sharding() == Sharding(1, Dtypes("bf16", "bf16", "bf16", "bf16", "bf16"))
