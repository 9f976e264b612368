"""Reading published configurations: aliases, nesting, quirks, and what is said when they do not fit."""

import pytest

from moesim.errors import InputError
from moesim.files import Tree
from moesim.model import from_hf, load
from moesim.model.attention import GatedDeltaNet, GroupedQueryAttention, LatentAttention, Mamba
from moesim.model.parameters import mtp_parameters, total_parameters
from moesim.model.spec import DenseFfn, Published

PLAIN = {
    "model_type": "llama",
    "hidden_size": 64,
    "vocab_size": 100,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
}
MOE = PLAIN | {
    "model_type": "qwen3_moe",
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}


def read(**fields):
    return from_hf(Tree({k: v for k, v in fields.items() if v is not ...}, source="config.json"))


def kinds(model):
    return ["M" if layer.moe else "D" for layer in model.layers]


def test_dense_by_hand():
    model = read(**PLAIN)
    attention = 64 * (4 + 2 * 2) * 16 + 4 * 16 * 64
    assert total_parameters(model) == 4 * (attention + 3 * 64 * 96 + 2 * 64) + 2 * 100 * 64 + 64
    assert len(model.layer_kinds()) == 1


@pytest.mark.parametrize(
    ("count", "top_k"),
    [
        ("n_routed_experts", "num_experts_per_tok"),
        ("num_local_experts", "experts_per_token"),
        ("moe_num_experts", "moe_top_k"),
    ],
)
def test_every_spelling_of_experts(count, top_k):
    model = read(**PLAIN | {"model_type": "mixtral", count: 8, top_k: 2})
    assert (model.num_experts, model.top_k) == (8, 2)
    assert model.expert_widths == (96,)  # Mixtral style: the experts have the dense width


def test_nested_decoder_is_found():
    inner = MOE | {"model_type": "qwen3_vl_moe_text"}
    model = from_hf(Tree({"model_type": "qwen3_vl_moe", "text_config": inner, "tie_word_embeddings": True}))
    assert model.num_experts == 8
    assert model.tied_embeddings


def test_dense_layers_first():
    assert kinds(read(**MOE | {"first_k_dense_replace": 2})) == ["D", "D", "M", "M"]


def test_sparse_steps_and_named_dense_layers():
    assert kinds(read(**MOE | {"decoder_sparse_step": 2})) == ["D", "M", "D", "M"]
    assert kinds(read(**MOE | {"mlp_only_layers": [1]})) == ["M", "D", "M", "M"]
    assert kinds(read(**MOE | {"moe_layer_freq": [0, 1, 1, 0]})) == ["D", "M", "M", "D"]
    assert kinds(read(**MOE | {"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]})) == list("DMMM")


def test_interleaved_layers_of_llama_4():
    model = load("llama_4_maverick")
    assert kinds(model)[:4] == ["D", "M", "D", "M"]
    assert model.layers[0].ffn == DenseFfn(16384)
    moe = model.layers[1].moe
    assert (moe.num_shared_experts, moe.shared_width, moe.expert_width) == (1, 8192, 8192)
    assert [layer.attention.window for layer in model.layers[:8]] == [8192, 8192, 8192, None] * 2


def test_windows_alternate_in_gpt_oss():
    assert [layer.attention.window for layer in load("gpt_oss_20b").layers[:4]] == [128, None, 128, None]


def test_a_window_as_long_as_the_model_is_none():
    base = PLAIN | {"model_type": "mistral", "sliding_window": 4096}
    assert read(**base).layers[0].attention.window == 4096
    assert read(**base | {"max_position_embeddings": 4096}).layers[0].attention.window is None
    assert read(**PLAIN | {"model_type": "qwen3", "sliding_window": 4096}).layers[0].attention.window is None


def test_hybrids_by_layer():
    attentions = [type(layer.attention) for layer in load("qwen3_next_80b_a3b").layers[:4]]
    assert attentions == [GatedDeltaNet] * 3 + [GroupedQueryAttention]
    jamba = load("jamba_v0_1")
    assert [i for i, layer in enumerate(jamba.layers) if not isinstance(layer.attention, Mamba)] == [
        4,
        12,
        20,
        28,
    ]
    assert jamba.moe_layers == tuple(range(1, 32, 2))


def test_deepseek_by_hand():
    model = load("deepseek_v3")
    mla = model.layers[0].attention
    assert isinstance(mla, LatentAttention)
    assert mla.kv_bytes_per_token("bf16") == 1152
    moe = model.layers[3].moe
    assert (moe.num_groups, moe.top_k_groups, moe.router_bias) == (8, 4, True)
    # arXiv:2412.19437, README_WEIGHTS: 11.5 B unique parameters in the MTP module, to 1 %
    assert mtp_parameters(model) == pytest.approx(11.5e9, rel=0.01)
    assert total_parameters(model, with_mtp=True) - total_parameters(model) == mtp_parameters(model)


def test_encoder_decoder_phases():
    model = load("switch_base_8")
    assert len(model.layers_in("prefill")) == len(model.layers_in("decode")) == 12
    assert set(model.layers_in("prefill")) | set(model.layers_in("decode")) == set(range(24))
    assert len(model.moe_layers) == 12
    assert load("mixtral_8x7b").layers_in("decode") == tuple(range(32))


def test_all_problems_at_once():
    with pytest.raises(InputError) as caught:
        read(
            **MOE
            | {"hidden_size": ..., "num_experts_per_tok": 9, "vocab_size": "many", "num_key_value_heads": 3}
        )
    fields = sorted(p.field for p in caught.value.problems)
    assert fields == ["hidden_size or d_model", "num_experts_per_tok", "num_key_value_heads", "vocab_size"]


@pytest.mark.parametrize("value", [0, -4, 2.5, True, "8", 10**12])
def test_counts_must_be_counts(value):
    with pytest.raises(InputError, match="num_attention_heads"):
        read(**PLAIN | {"num_attention_heads": value})


def test_absurd_depth_is_refused_before_it_costs_anything():
    with pytest.raises(InputError, match="at most 10000"):
        read(**PLAIN | {"num_hidden_layers": 10**9})


def test_unknown_architecture_with_plain_fields_is_read():
    model = read(**MOE | {"model_type": "brand_new"})
    assert "plain mapping" in model.source
    assert model.num_experts == 8


def test_unknown_architecture_says_what_is_missing():
    with pytest.raises(InputError) as caught:
        read(model_type="qwen3_mo", hidden_size=64, num_experts=8)
    text = str(caught.value)
    assert "did you mean 'qwen3_moe'" in text
    for spelling in ("num_hidden_layers", "vocab_size", "num_experts_per_tok", "moe_intermediate_size"):
        assert spelling in text


def test_unknown_architecture_with_unknown_structure_is_refused():
    with pytest.raises(InputError, match="not understood: ssm_state_size"):
        read(**MOE | {"model_type": "brand_new", "ssm_state_size": 128})


def test_not_a_mapping():
    with pytest.raises(InputError, match="mapping of fields"):
        from_hf(Tree([1, 2], source="config.json"))


@pytest.mark.parametrize("text", ["lots", "12Q", "-3B"])
def test_published_counts_are_counts(text):
    with pytest.raises(InputError, match="as printed"):
        read(**PLAIN, moesim={"published_total_parameters": text})


def test_published_precision():
    stated = Published(46.7e9, 0.1e9)
    assert stated.agrees(46.65e9)  # rounds
    assert stated.agrees(46.79e9)  # truncates
    assert stated.agrees(46.5e9)  # within 0.5 %
    assert not stated.agrees(46.3e9)
    assert not stated.agrees(47.0e9)
    assert Published(109e9, 1e9, other_parameters=10**9).agrees(107.8e9)


def test_names_are_forgiving_and_paths_are_paths(tmp_path):
    assert load("Qwen3-30B-A3B").name == "qwen3_30b_a3b"
    with pytest.raises(InputError, match="accepted: a path to a config.json"):
        load(str(tmp_path / "nothing"))
    with pytest.raises(InputError, match="did you mean 'deepseek_v3'"):
        load("deepseek_v9")
