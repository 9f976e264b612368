"""Variants of a network: what each mechanism stores, computes and sends, against its paper's cost rule."""

import numpy as np
import pytest

from moesim.errors import InputError
from moesim.files import Tree
from moesim.model import Dtypes, load
from moesim.model.layer_ops import (
    attention_ops,
    expert_op,
    forward_flops_per_token,
    permute_op,
    plain_ffn_ops,
    router_ops,
)
from moesim.model.load import load_changed
from moesim.model.ops import Gemm, Segment, Sharding
from moesim.model.parameters import active_parameters, total_parameters, weight_bytes
from moesim.model.row_memory import MemoryFfn
from moesim.model.variant import Variant, variant_of, varied

BASE = load("qwen3_30b_a3b")
HIDDEN, LAYERS, EXPERTS, TOP_K, WIDTH = 2048, 48, 128, 8, 768
EXPERT = 3 * HIDDEN * WIDTH


def test_no_change_changes_nothing():
    same = varied(BASE, Variant())
    assert total_parameters(same) == total_parameters(BASE)
    assert same.layers == BASE.layers


def test_fewer_working_experts_cost_less_and_store_the_same():
    fewer = varied(BASE, Variant(mean_active_experts=3.5))
    assert total_parameters(fewer) == total_parameters(BASE)
    assert active_parameters(BASE) - active_parameters(fewer) == LAYERS * 4.5 * EXPERT
    saved = forward_flops_per_token(BASE, 1024) - forward_flops_per_token(fewer, 1024)
    assert saved == pytest.approx(LAYERS * 4.5 * 2 * EXPERT)


def test_latent_experts_work_and_travel_in_the_latent_width():
    latent = varied(BASE, Variant(latent_size=512))
    moe = latent.layers[0].moe
    # d m for each way once a token, k m ff for the experts (MoLE)
    flops = LAYERS * 2 * (2 * HIDDEN * 512 + TOP_K * 3 * 512 * WIDTH)
    without = forward_flops_per_token(BASE, 1024) - LAYERS * 2 * TOP_K * EXPERT
    assert forward_flops_per_token(latent, 1024) == pytest.approx(without + flops)
    stored = LAYERS * (2 * HIDDEN * 512 - EXPERTS * 3 * (HIDDEN - 512) * WIDTH)
    assert total_parameters(latent) - total_parameters(BASE) == stored
    assert latent.routed_hidden == 512
    assert permute_op(moe, HIDDEN, 10.0, 80.0, Dtypes()).moved_bytes == 90 * 512 * 2
    assert [op.name for op in router_ops(moe, HIDDEN, 1.0, Dtypes())] == [
        "router",
        "latent_down",
        "latent_up",
    ]


def test_published_latent_width_is_read(tmp_path):
    tree = Tree(
        {
            "model_type": "qwen3_moe",
            "hidden_size": 64,
            "vocab_size": 100,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "intermediate_size": 64,
            "moe_intermediate_size": 32,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_latent_size": 16,
        },
        {},
        "config.json",
    )
    from moesim.model import from_hf

    assert from_hf(tree).layers[0].moe.routed_hidden(64) == 16


@pytest.mark.parametrize(
    ("variant", "numbers"),
    [
        (Variant(kept_width=0.75), 0.75 * EXPERT),
        (Variant(expert_rank=64), 3 * 64 * (HIDDEN + WIDTH)),
        (Variant(expert_rank=64, expert_density=0.1), 3 * 64 * (HIDDEN + WIDTH) + 0.1 * EXPERT),
        (Variant(kept_width=0.5, expert_rank=32), 3 * 32 * (HIDDEN + WIDTH / 2)),
    ],
)
def test_smaller_experts_have_as_many_numbers_as_are_left(variant, numbers):
    op = expert_op(varied(BASE, variant).layers[0].moe, HIDDEN, EXPERTS, Dtypes())
    assert op.weights_per_expert == pytest.approx(numbers, rel=0.5 / 64)  # widths are whole numbers
    assert op.flops(np.array([3.0, 4.0])) == 2 * 7 * op.weights_per_expert


def test_iterated_experts_are_stored_once_and_pass_twice():
    chain = varied(BASE, Variant(iterations=2))
    assert chain.num_layers == 2 * LAYERS
    assert [layer.again for layer in chain.layers[:4]] == [False, True, False, True]
    again = LAYERS * (HIDDEN * EXPERTS + BASE.layers[0].norm_parameters // 2)
    assert total_parameters(chain) - total_parameters(BASE) == again  # a router and a norm each
    dtypes = Dtypes()
    assert weight_bytes(chain, dtypes) - weight_bytes(BASE, dtypes) == 2 * again
    more = forward_flops_per_token(chain, 1024) - forward_flops_per_token(BASE, 1024)
    assert more == pytest.approx(LAYERS * 2 * (TOP_K * EXPERT + HIDDEN * EXPERTS))
    segments = [Segment.decode(4.0, 100.0)]
    assert attention_ops(chain.layers[1], HIDDEN, segments) == []
    assert sum(layer.kv_bytes_per_token("bf16") for layer in chain.layers) == sum(
        layer.kv_bytes_per_token("bf16") for layer in BASE.layers
    )


def test_shared_experts_are_not_stored_again():
    base = load("deepseek_v2_lite")
    chain = varied(base, Variant(iterations=3))
    own = [layer for layer in base.layers if layer.moe]
    again = 2 * sum(
        layer.moe.router_parameters(base.hidden_size) + layer.norm_parameters // 2 for layer in own
    )
    assert total_parameters(chain) - total_parameters(base) == again


def test_attention_experts_are_one_attention_of_their_heads():
    apart, shared = (varied(BASE, Variant(attention_experts=2, shared_kv=kv)) for kv in (False, True))
    before = BASE.layers[0].attention
    assert apart.layers[0].attention.num_heads == shared.layers[0].attention.num_heads == 2 * before.num_heads
    assert apart.layers[0].kv_bytes_per_token("bf16") == 2 * BASE.layers[0].kv_bytes_per_token("bf16")
    assert shared.layers[0].kv_bytes_per_token("bf16") == BASE.layers[0].kv_bytes_per_token("bf16")


def test_row_memory_reads_its_rows_and_stores_all():
    # UltraMemV2 1B/7B: 528 keys an axis of width 512, 128 rows of 384 + 768
    memory = MemoryFfn(528, 512, 128, 768, 384)
    model = varied(BASE, Variant(memory=memory))
    assert not model.moe_layers
    assert memory.parameters(HIDDEN) - memory.common_parameters(HIDDEN) == 528**2 * 1152
    ops = {op.name: op for op in plain_ffn_ops(memory, HIDDEN, 4.0)}
    assert ops["memory_rows"].moved_bytes == 4 * 128 * 1152 * 2
    # rows: 4.7 MB of 16 layers at batch 1 (their layers, bf16)
    assert 16 * ops["memory_rows"].moved_bytes / 4 == pytest.approx(4.7e6, rel=0.01)
    products = sum(op.flops for op in ops.values() if isinstance(op, Gemm))
    assert products == 2 * 4 * (memory.common_parameters(HIDDEN))
    split = {op.name: op for op in plain_ffn_ops(memory, HIDDEN, 4.0, Sharding(tp=2))}
    assert split["memory_rows"].moved_bytes == ops["memory_rows"].moved_bytes / 2


def test_row_memory_beside_a_dense_part_keeps_it():
    dense = load("llama_3_1_8b")
    model = varied(dense, Variant(memory=MemoryFfn(100, 64, 8, 128)))
    assert model.layers[0].ffn.beside == dense.layers[0].ffn
    more = 32 * (MemoryFfn(100, 64, 8, 128).parameters(dense.hidden_size))
    assert total_parameters(model) - total_parameters(dense) == more


def tree_of(**block):
    return Tree({"variant": block}, {("variant", "iterations"): "model.json:7"}, "model.json")


def test_block_is_read():
    found = variant_of(
        tree_of(mean_active_experts=1.66, memory={"keys": 3, "key_dim": 2, "rows": 9, "value_dim": 1})
    )
    assert found == Variant(mean_active_experts=1.66, memory=MemoryFfn(3, 2, 9, 1))
    assert variant_of(Tree({}, {}, "model.json")) is None


def test_every_wrong_value_is_told_at_once():
    with pytest.raises(InputError) as error:
        variant_of(
            tree_of(
                iterations=0,
                kept_width=1.5,
                shared_kv="yes",
                latent=3,
                mean_active_experts=0,
                memory={"keys": 2, "key_dim": 1, "rows": 5, "value_dims": 1},
            )
        )
    fields = {problem.field: str(problem) for problem in error.value.problems}
    assert set(fields) == {
        "model.variant.iterations",
        "model.variant.kept_width",
        "model.variant.shared_kv",
        "model.variant.latent",
        "model.variant.mean_active_experts",
        "model.variant.memory.value_dims",
        "model.variant.memory.value_dim",
    }
    assert "model.json:7" in fields["model.variant.iterations"]
    with pytest.raises(InputError, match="at most 4, the rows there are"):
        variant_of(tree_of(memory={"keys": 2, "key_dim": 1, "rows": 5, "value_dim": 1}))
    with pytest.raises(InputError, match="a mapping of fields"):
        variant_of(Tree({"variant": 3}, {}, "model.json"))


def test_what_a_model_lacks_cannot_vary():
    with pytest.raises(InputError, match="a model with routed experts"):
        varied(load("llama_3_1_8b"), Variant(iterations=2))
    with pytest.raises(InputError, match="at most 8, the experts that a token may choose"):
        varied(BASE, Variant(mean_active_experts=9))
    with pytest.raises(InputError, match="1 in an encoder-decoder model"):
        varied(load("switch_base_8"), Variant(iterations=2))
    with pytest.raises(InputError, match="grouped-query attention only"):
        varied(load("deepseek_v2_lite"), Variant(attention_experts=2))


def test_variants_of_encoder_decoder_models_are_read():
    base, changed = load("switch_base_8"), load_changed("switch_base_8", ["variant.kept_width=0.5"])
    assert changed.expert_widths == (base.expert_widths[0] // 2,)
    with pytest.raises(InputError, match="unknown field; did you mean 'kept_width'"):
        load_changed("switch_base_8", ["variant.kept_with=0.5"])
