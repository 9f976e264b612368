"""Policies of recomputation: what they run again and what they forget."""

import pytest

from moesim.errors import InputError
from moesim.model import Dtypes, load
from moesim.model.attention import GroupedQueryAttention
from moesim.model.spec import DenseFfn, LayerSpec
from moesim.training.activations import Rows, kept, saved_tensors, total
from moesim.training.recompute import MODULES, TAGS, Recompute

MODELS = ("mixtral_8x7b", "deepseek_v3", "qwen3_30b_a3b", "llama_3_1_8b", "qwen3_next_80b_a3b", "jamba_v0_1")


def test_selective_runs_its_modules_again_and_nothing_else():
    policy = Recompute("selective", ("mla_up_proj", "moe_act"))
    assert {tag for tag in TAGS if policy.reruns(tag)} == {"mla_up_proj", "expert_activation"}
    assert not any(Recompute().reruns(tag) for tag in TAGS)


def test_full_runs_everything_of_its_layers_again():
    policy = Recompute("full", method="block", num_layers=2)
    assert [policy.reruns("attention", position) for position in range(4)] == [True, True, False, False]
    assert not policy.reruns("head")
    assert all(Recompute("full", num_layers=4).reruns(tag) for tag in TAGS - {"head", "loss", "embedding"})


def test_uniform_keeps_one_input_a_group():
    model = load("llama_3_1_8b")
    tensors = saved_tensors(model.layers[0], model.hidden_size, Rows(4096, 0), Dtypes())
    policy = Recompute("full", method="uniform", num_layers=4)
    inputs = [kept(tensors, policy, position) for position in range(8)]
    assert inputs == [4096 * 4096 * 2, 0, 0, 0] * 2


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("module", MODULES)
def test_recomputing_more_never_keeps_more(name, module):
    model = load(name)
    for layer in model.layer_kinds():
        rows = Rows(2048, 2048 * 2, tp=2)
        tensors = saved_tensors(layer, model.hidden_size, rows, Dtypes())
        plain = kept(tensors, Recompute())
        less = kept(tensors, Recompute("selective", (module,)))
        assert kept(tensors, Recompute("full")) <= less <= plain == total(tensors)
        assert kept(tensors, Recompute("selective", tuple(MODULES))) <= less


def test_fused_attention_leaves_little_to_recompute_in_its_core():
    # one fp32 number a token and head: what flash attention keeps beside its inputs and result
    model = load("deepseek_v3")
    tensors = saved_tensors(model.layers[5], model.hidden_size, Rows(4096, 0, tp=2), Dtypes())
    saved = kept(tensors, Recompute()) - kept(tensors, Recompute("selective", ("core_attn",)))
    assert saved == 4096 * 64 * 4


def test_mla_up_projection_forgets_queries_keys_and_values():
    model = load("deepseek_v3")
    tensors = saved_tensors(model.layers[5], model.hidden_size, Rows(4096, 0), Dtypes())
    saved = kept(tensors, Recompute()) - kept(tensors, Recompute("selective", ("mla_up_proj",)))
    assert saved == 4096 * 128 * (192 + 192 + 128) * 2


def test_gpt_layer_agrees_with_korthikanti():
    # their 34 s b h less two dropout masks: norms' inputs 4, attention 2 + 6 + 2, feed-forward 2 + 8 + 8
    hidden, rows = 1024, 1000
    layer = LayerSpec(GroupedQueryAttention(16, 16, 64, 64), DenseFfn(4 * hidden, gated=False), 2 * hidden)
    tensors = saved_tensors(layer, hidden, Rows(rows, 0), Dtypes())
    assert total([t for t in tensors if t.name != "softmax sums"]) == 32 * rows * hidden


def test_inputs_of_products_shrink_with_fp8():
    model = load("llama_3_1_70b")
    rows = Rows(4096, 0, tp=4)
    wide, narrow = (
        saved_tensors(model.layers[0], model.hidden_size, rows, Dtypes(weights=w)) for w in ("bf16", "fp8")
    )
    activated = {t.name: t.num_bytes for t in wide}["activated"]
    assert {t.name: t.num_bytes for t in narrow}["activated"] == activated / 2
    assert total(narrow) < total(wide)


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ({"granularity": "some"}, "one of none, selective, full"),
        ({"granularity": "selective", "modules": ("moe_acts",)}, "did you mean 'moe_act'"),
        ({"granularity": "full", "modules": ("moe",)}, "accepted: 'selective'"),
        ({"num_layers": 0}, "a whole number >= 1"),
    ],
)
def test_wrong_policies_say_what_is_accepted(policy, words):
    with pytest.raises(InputError, match=words):
        Recompute(**policy)
