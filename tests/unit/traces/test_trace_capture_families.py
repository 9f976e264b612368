"""Capture from tiny random models of every family, against what their routers return or compute.

The recorder sees the arguments of the experts; the reference is a hook on the outputs of the routers,
a different place in the model. Where a router does not return its choice, the reference computes it
here from the router's logits. Needs the capture extra.
"""

import re

import numpy as np
import pytest

from moesim.errors import InputError
from moesim.traces.capture import CaptureSettings, Text, capture, random_model
from moesim.traces.capture.passes import passes_of
from moesim.traces.capture.recorder import Recorder
from moesim.traces.store import verify_trace

FAMILIES = [
    "AXK1",
    "AXK2",
    "Afmoe",
    "AriaText",
    "BailingHybrid",
    "Beam",
    "Cohere2Moe",
    "DeepseekV2",
    "DeepseekV3",
    "DeepseekV32",
    "DeepseekV4",
    "Dots1",
    "Ernie4_5_Moe",
    "ExaoneMoe",
    "FlexOlmo",
    "Flint",
    "Gemma4",
    "Glm4Moe",
    "Glm4MoeLite",
    "GlmMoeDsa",
    "GptOss",
    "GraniteMoe",
    "GraniteMoeHybrid",
    "GraniteMoeSWA",
    "GraniteMoeShared",
    "HYV3",
    "HYV4",
    "HunYuanMoEV1",
    "Inkling",
    "Inkling2",
    "Jamba",
    "KimiLinear",
    "Kolibri1",
    "Laguna",
    "LaraMini",
    "Lfm2Moe",
    "LongcatFlash",
    "Mellum",
    "MiMoV2Flash",
    "MiniMax",
    "MiniMaxM2",
    "MiniMaxM3VL",
    "Mistral4",
    "Mixtral",
    "NemotronH",
    "Olmoe",
    "Phimoe",
    "Qwen2Moe",
    "Qwen3Moe",
    "Qwen3Next",
    "Qwen3_5Moe",
    "SolarOpen",
]
EXPERTS = 8


@pytest.fixture(scope="module", autouse=True)
def torch():
    found = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    found.set_num_threads(1)
    return found


def tiny(class_name):
    """Random model whose correction biases are not zero, and so would show a choice taken from logits."""
    import transformers

    if not hasattr(transformers, class_name):
        pytest.skip(f"this transformers has no {class_name}")
    model = random_model(class_name, experts=EXPERTS).model
    for name, buffer in [*model.named_buffers(), *model.named_parameters()]:
        if "correction_bias" in name or name.endswith("expert_bias"):
            buffer.data.normal_(std=0.5)
    return model


def layer(name):
    return int(re.findall(r"(?<=\.)\d+(?=\.)", name)[0])


def captured(model, part="", generate=2, hooks=()):
    """Ids and weights of each pass, and what the hooks noted in it."""
    import torch

    recorder = Recorder.of(model, part)
    noted, found = {}, []
    handles = [
        module.register_forward_hook(lambda *call, name=name, read=read: noted.update({name: read(*call)}))
        for name, module, read in hooks
    ]
    prompts = torch.tensor(np.random.default_rng(0).integers(3, 200, (2, 9)))
    with torch.inference_mode(), recorder.attached():
        run = passes_of(model, recorder, generate)
        for tokens, _ in run(prompts, generate, lambda logits: logits.argmax(-1, keepdim=True)):
            ids, weights = recorder.taken(2, tokens)
            assert ids.shape[:2] == (2, tokens)
            found.append((ids, weights, [noted[name] for name in sorted(noted, key=layer)]))
            noted.clear()
    assert not any(module._forward_pre_hooks for module in model.modules())
    for handle in handles:
        handle.remove()
    return recorder, found


def modules(model, pattern):
    return [(name, module) for name, module in model.named_modules() if re.search(pattern, name)]


def returned_ids(_module, _arguments, output):
    """Whole numbers among what a router returns."""
    parts = output if isinstance(output, tuple | list) else (output,)
    for part in parts:
        if hasattr(part, "dtype") and part.dim() == 2 and not part.is_floating_point():
            return part.numpy().copy()
    return None


def result(_module, _arguments, output):
    return output.float().numpy().copy()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
def test_experts_are_called_with_what_the_router_chose(family):
    model = tiny(f"{family}ForCausalLM")
    routers = [
        (name, module, returned_ids)
        for name, module in model.named_modules()
        if type(module).__name__.lower().endswith(("router", "gate"))
        and "Forget" not in type(module).__name__
    ]
    recorder, found = captured(model, hooks=routers)
    assert recorder.num_experts == EXPERTS
    assert recorder.layer_indices == tuple(sorted(set(recorder.layer_indices)))
    for ids, weights, chosen in found:
        assert len(chosen) == len(recorder.points)
        expected = np.stack(chosen, axis=1).reshape(ids.shape)
        assert np.array_equal(ids, np.where(expected >= EXPERTS, 255, expected))
        assert (weights[ids == 255] == 0).all()
        assert ids[ids != 255].max() < EXPERTS


def softmax(logits):
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shares / shares.sum(axis=-1, keepdims=True)


def test_llama4_against_its_routers_weights():
    model = tiny("Llama4ForCausalLM")
    given = [
        (name, module, lambda m, arguments, _out: (arguments[0] @ m.weight.T).numpy().copy())
        for name, module in modules(model, r"\.router$")
    ]
    _, found = captured(model, hooks=given)
    for ids, weights, logits in found:
        order = np.argsort(-np.stack(logits, axis=1), axis=-1)[..., : ids.shape[-1]]
        assert np.array_equal(ids, order.reshape(ids.shape))
        best = np.take_along_axis(np.stack(logits, axis=1), order, axis=-1).reshape(ids.shape)
        assert weights == pytest.approx(1 / (1 + np.exp(-best)), abs=1e-3)


@pytest.mark.parametrize("part", ["mlp", "attention"])
def test_jetmoe_against_its_logits(part):
    model = tiny("JetMoeForCausalLM")
    names = r"mlp\.router\.layer$" if part == "mlp" else r"experts\.router\.layer$"
    _, found = captured(model, part, hooks=[(n, m, result) for n, m in modules(model, names)])
    for ids, weights, logits in found:
        table = np.stack(logits, axis=1)
        order = np.argsort(-table, axis=-1)[..., : ids.shape[-1]]
        assert np.array_equal(ids, order.reshape(ids.shape))
        shares = softmax(np.take_along_axis(table, order, axis=-1))
        assert weights == pytest.approx(shares.reshape(ids.shape), abs=1e-3)


def test_doge_against_all_pairs_of_keys():
    model = tiny("DogeForCausalLM")
    _, found = captured(model, hooks=[(n, m, result) for n, m in modules(model, r"router_gate$")])
    for ids, weights, gates in found:
        assert weights is None
        for index, gate in enumerate(gates):
            # the two halves of the keys are split across tokens, as the model's own code does
            first, second = gate.reshape(2, ids.shape[0] * ids.shape[1], -1)
            sums = (first[:, :, None] + second[:, None, :]).reshape(len(first), -1)
            best = np.argsort(-sums, axis=-1)[:, : ids.shape[-1]]
            assert np.array_equal(ids[:, :, index].reshape(best.shape), best)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
@pytest.mark.parametrize("capacity", [64, 1])
def test_switch_against_its_logits_and_capacity(part, capacity):
    model = tiny("SwitchTransformersForConditionalGeneration")
    routers = modules(model, rf"^{part}.*router$")
    for _, router in routers:
        router.expert_capacity = capacity
    logits_of = [(n, m, result) for n, m in modules(model, rf"^{part}.*classifier$")]
    recorder, found = captured(model, part, generate=0 if part == "encoder" else 3, hooks=logits_of)
    assert len(found) == (1 if part == "encoder" else 3)
    for ids, weights, logits in found:
        for index, table in enumerate(logits):
            best = table.argmax(axis=-1)
            onehot = np.eye(EXPERTS, dtype=int)[best]
            kept = np.take_along_axis(onehot.cumsum(axis=1), best[..., None], axis=-1)[..., 0] <= capacity
            assert np.array_equal(ids[:, :, index, 0], np.where(kept, best, 255))
            expected = np.where(kept, softmax(table).max(axis=-1), 0)
            assert weights[:, :, index, 0] == pytest.approx(expected, abs=1e-3)
    assert set(recorder.adapters.values()) == {"switch"}


@pytest.mark.parametrize("part", ["encoder", "decoder"])
@pytest.mark.parametrize("fraction", [1.0, 0.25])
def test_nllb_against_its_logits_and_capacity(part, fraction):
    model = tiny("NllbMoeForConditionalGeneration")
    routers = modules(model, rf"\.{part}\..*router$")
    for _, router in routers:
        router.moe_eval_capacity_token_fraction = fraction
        router.second_expert_policy = "all"
    logits_of = [(n, m, result) for n, m in modules(model, rf"\.{part}\..*classifier$")]
    _, found = captured(model, part, generate=0 if part == "encoder" else 3, hooks=logits_of)
    for ids, _, logits in found:
        for index, router_logits in enumerate(logits):
            table = router_logits.reshape(-1, EXPERTS)
            capacity = np.ceil(fraction * len(table))
            order = np.argsort(-table, axis=-1)[:, :2]
            filled = np.zeros(EXPERTS, int)
            places = np.empty(order.shape, int)
            for slot in (0, 1):
                for token, expert in enumerate(order[:, slot]):
                    places[token, slot] = filled[expert]
                    filled[expert] += 1
            kept = places < capacity
            for token in range(len(table)):
                chosen = ids[:, :, index].reshape(-1, 2)[token]
                assert set(chosen[chosen != 255]) == set(order[token][kept[token]])


def test_zaya_skips_where_the_extra_choice_wins():
    model = tiny("ZayaForCausalLM")
    for _, router in modules(model, r"gate$"):
        router.balancing_biases[-1] = 0.0
    logits_of = [(n, m, result) for n, m in modules(model, r"router_mlp\.out_proj$")]
    recorder, found = captured(model, hooks=logits_of)
    skipped = 0
    for ids, _, logits in found:
        for index, (name, table) in enumerate(zip(sorted(recorder.points, key=layer), logits, strict=True)):
            bias = model.get_submodule(f"{name}.gate").balancing_biases.numpy()
            best = (softmax(table) + bias).argmax(axis=-1).reshape(-1)
            assert np.array_equal(ids[:, :, index, 0].reshape(-1), np.where(best == EXPERTS, 255, best))
            skipped += int((best == EXPERTS).sum())
    assert skipped


def test_parts_are_named_and_asked_for():
    model = tiny("SwitchTransformersForConditionalGeneration")
    for part, word in (("", "accepted: a part of encoder"), ("tower", "no routed block .* with 'tower'")):
        with pytest.raises(InputError, match=word):
            Recorder.of(model, part)
    encoder = Recorder.of(model, "encoder")
    with pytest.raises(InputError, match="0 for the encoder"):
        passes_of(model, encoder, 4)
    with pytest.raises(InputError, match=">= 1 for a decoder"):
        passes_of(model, Recorder.of(model, "decoder"), 0)


def test_decoder_behind_an_encoder_keeps_only_what_it_decodes(tmp_path):
    subject = random_model("SwitchTransformersForConditionalGeneration", experts=EXPERTS)
    settings = CaptureSettings(sequence_tokens=16, generate_tokens=4, generate_requests=3, part="decoder")
    trace = capture(subject, [Text("prose", "words " * 40)], settings, tmp_path / "t.safetensors")
    verify_trace(trace)
    assert (trace.num_requests, trace.num_tokens) == (3, 12)
    assert trace.phase.tolist() == [0, 1, 1, 1] * 3


def test_unknown_and_dense_classes_are_refused(tmp_path):
    with pytest.raises(InputError, match="did you mean"):
        random_model("OlmoForCausalLMM")
    dense = random_model("LlamaForCausalLM")
    with pytest.raises(InputError, match="mixture-of-experts"):
        capture(dense, [Text("x", "y" * 300)], CaptureSettings(), tmp_path / "t.safetensors")
