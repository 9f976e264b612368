"""Capture from tiny random models of every family, against what their routers return themselves.

The recorder sees the arguments of the experts; the reference is a hook on the outputs of the routers,
a different place in the model. Needs the capture extra.
"""

import inspect

import numpy as np
import pytest

from moesim.errors import InputError
from moesim.traces.recorder import Recorder

TINY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "num_hidden_layers": 3,
    "num_experts": 8,
    "num_local_experts": 8,
    "n_routed_experts": 8,
    "moe_num_experts": 8,
    "num_experts_per_tok": 3,
    "num_experts_per_token": 3,
    "moe_k": 3,
    "moe_topk": 3,
    "top_k_experts": 3,
    "moe_intermediate_size": 16,
    "expert_ffn_hidden_size": 16,
    "ffn_hidden_size": 32,
    "shared_expert_intermediate_size": 16,
    "moe_shared_expert_intermediate_size": 16,
    "moe_shared_intermediate_size": 16,
    "shared_intermediate_size": 16,
    "n_group": 2,
    "topk_group": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "index_topk": 8,
    "index_head_dim": 16,
    "index_n_heads": 2,
    "mamba_d_state": 8,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_dt_rank": 8,
    "use_mamba_kernels": False,
    "first_k_dense_replace": 1,
}
SPECIAL = {
    "deepseek_v2": {"topk_method": "group_limited_greedy", "num_key_value_heads": 4},
    "deepseek_v32": {"num_key_value_heads": 4},
    "dots1": {"n_shared_experts": 1},
    "deepseek_v3": {"num_key_value_heads": 4},
    "glm4_moe_lite": {"num_key_value_heads": 4},
    "glm_moe_dsa": {"num_key_value_heads": 4},
    "granitemoehybrid": {"layer_types": ["attention"] * 3, "mamba_n_heads": 4, "mamba_d_head": 16},
    "jamba": {
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
    },
    "longcat_flash": {"num_layers": 2, "zero_expert_num": 4, "num_key_value_heads": 4, "ffn_hidden_size": 32},
    "lfm2_moe": {"num_dense_layers": 1, "layer_types": ["conv", "full_attention", "conv"]},
    "afmoe": {"num_dense_layers": 1},
    "gemma4_text": {
        "enable_moe_block": True,
        "vocab_size_per_layer_input": 64,
        "hidden_size_per_layer_input": 8,
    },
    "qwen3_next": {"layer_types": ["full_attention", "linear_attention", "full_attention"]},
    "qwen3_5_moe_text": {"layer_types": ["full_attention", "linear_attention", "full_attention"]},
    "minimax": {"layer_types": ["full_attention", "linear_attention", "full_attention"]},
    "nemotron_h": {"layers_block_type": ["moe", "attention", "moe"]},
}
FAMILIES = (
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "qwen3_next",
    "qwen3_5_moe_text",
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v32",
    "glm4_moe",
    "glm4_moe_lite",
    "glm_moe_dsa",
    "olmoe",
    "flex_olmo",
    "gpt_oss",
    "phimoe",
    "minimax",
    "minimax_m2",
    "jamba",
    "granitemoe",
    "granitemoeshared",
    "granitemoehybrid",
    "ernie4_5_moe",
    "hunyuan_v1_moe",
    "longcat_flash",
    "lfm2_moe",
    "dots1",
    "mimo_v2_flash",
    "solar_open",
    "hy_v3",
    "afmoe",
    "nemotron_h",
    "gemma4_text",
)
REFUSED = ("llama4_text", "jetmoe")


@pytest.fixture(scope="module", autouse=True)
def torch():
    found = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    found.set_num_threads(1)
    return found


def tiny_model(family):
    """Random model of a family with a few small layers, from its public configuration class."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if family not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {family}")
    cls = CONFIG_MAPPING[family]
    known = set(inspect.signature(cls.__init__).parameters) | set(getattr(cls, "attribute_map", {}))
    config = cls(**{k: v for k, v in TINY.items() if k in known} | SPECIAL.get(family, {}))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, buffer in [*model.named_buffers(), *model.named_parameters()]:
        if "correction_bias" in name or name.endswith("expert_bias"):
            # a fresh bias is zero, and would not show a choice taken from the logits
            buffer.data.normal_(std=0.5)
    return model


def router_hooks(model, seen):
    """Hooks on modules beside the experts whose output holds whole numbers: the routers."""

    def note(name):
        def hook(_module, _arguments, output):
            parts = output if isinstance(output, tuple | list) else (output,)
            for part in parts:
                if hasattr(part, "dtype") and part.dim() == 2 and not part.is_floating_point():
                    seen[name] = part.detach().numpy()

        return hook

    found = [
        (n, m) for n, m in model.named_modules() if type(m).__name__.lower().endswith(("router", "gate"))
    ]
    return [module.register_forward_hook(note(name)) for name, module in found]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
def test_experts_are_called_with_what_the_router_chose(family, torch):
    model = tiny_model(family)
    recorder = Recorder.of(model)
    reference = {}
    hooks = router_hooks(model, reference)
    rng = np.random.default_rng(0)
    cache_name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    with torch.inference_mode(), recorder.attached():
        cache = None
        for tokens in (9, 1, 1):  # prefill, then decode with the cache
            inputs = torch.tensor(rng.integers(3, 64, (2, tokens)))
            output = model(input_ids=inputs, use_cache=True, **{cache_name: cache})
            cache = output[cache_name]
            ids, weights = recorder.taken(2, tokens)
            assert ids.shape[:2] == weights.shape[:2] == (2, tokens)
            chosen = np.stack([reference[n] for n in sorted(reference, key=_layer)], axis=1)
            expected = np.where(chosen >= recorder.num_experts, 255, chosen).reshape(ids.shape)
            assert np.array_equal(ids, expected)
            assert len(reference) == len(recorder.modules)
            assert (weights[ids == 255] == 0).all()
            assert ids[ids != 255].max() < 8
            reference.clear()
    for hook in hooks:
        hook.remove()


def _layer(name):
    return int(next(part for part in name.split(".") if part.isdigit()))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", REFUSED)
def test_other_routers_are_refused(family, torch):
    model = tiny_model(family)
    with pytest.raises(InputError):  # noqa: PT012 - refused when hooked, or when called
        recorder = Recorder.of(model)
        with torch.inference_mode(), recorder.attached():
            model(input_ids=torch.tensor([[5, 6, 7]]))
            recorder.taken(1, 3)
