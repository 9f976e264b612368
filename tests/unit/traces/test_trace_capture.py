"""Capture from a real model; needs the capture extra, except for the message when it is absent."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from moesim.errors import InputError
from moesim.traces import read_trace, write_trace
from moesim.traces.capture import CaptureSettings, Text, capture, load_model
from moesim.traces.store import verify_trace

ROOT = Path(__file__).resolve().parents[3]
CHECKPOINT = ROOT / "traces" / "tiny_olmoe" / "checkpoint"
CODE = Path(__file__).read_text()
PROSE = "In the beginning was the word, and the word was with the reader of this page. " * 40


@pytest.mark.parametrize("absent", ["torch", "transformers"])
def test_missing_extra_names_the_install_line(monkeypatch, absent):
    if absent == "transformers":
        pytest.importorskip("torch")
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(InputError, match=rf"needs {absent}, .*pip install moesim\[capture\]"):
        load_model(CHECKPOINT)


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"sequence_tokens": 0}, "sequence_tokens"),
        ({"generate_tokens": -1}, "generate_tokens"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"batch_requests": 0}, "batch_requests"),
    ],
)
def test_settings_out_of_range(wrong, word):
    with pytest.raises(InputError, match=word):
        CaptureSettings(**wrong)


@pytest.fixture(scope="module")
def loaded():
    pytest.importorskip("torch").set_num_threads(1)
    pytest.importorskip("transformers")
    return load_model(CHECKPOINT, dtype="float32", name="tiny")


@pytest.fixture(scope="module")
def captured(loaded, tmp_path_factory):
    settings = CaptureSettings(
        sequence_tokens=48, max_tokens=160, generate_tokens=5, generate_requests=2, batch_requests=2
    )
    texts = [Text("prose", PROSE), Text("python", CODE)]
    told = []
    out = tmp_path_factory.mktemp("capture") / "t.safetensors"
    trace = capture(loaded, texts, settings, out, date="today", progress=lambda *p: told.append(p))
    return trace, told


def routed_by_gate(model, ids):
    """Indices and weights each router returns, by a hook on the routers instead of the experts."""
    import torch

    seen = []
    hooks = [
        layer.mlp.gate.register_forward_hook(lambda _m, _a, out: seen.append((out[2], out[1])))
        for layer in model.model.layers
    ]
    with torch.inference_mode():
        output = model(input_ids=torch.tensor([list(map(int, ids))]))
    for hook in hooks:
        hook.remove()
    indices = np.stack([i.numpy() for i, _ in seen], axis=1)
    return indices, np.stack([w.numpy() for _, w in seen], axis=1), output.logits[0].numpy()


def test_shape_phases_and_order(captured):
    trace, told = captured
    verify_trace(trace)
    assert trace.info.model == "tiny"
    assert trace.info.domains == ("prose", "python")
    assert trace.num_requests == 6
    assert trace.num_tokens == 6 * 48 + 4 * 5
    assert int((trace.phase == 1).sum()) == 20
    assert told[-1] == (6, 6)
    decode = trace.select(phase="decode")
    assert decode.position.tolist() == [48, 49, 50, 51, 52] * 4


def test_routing_equals_what_the_routers_returned(loaded, captured):
    model, tokenizer = loaded.model, loaded.tokenizer
    trace = captured[0]
    for text, request in ((PROSE, 2), (CODE, 5)):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"][96:144]
        indices, weights, _ = routed_by_gate(model, ids)
        rows = trace.take(trace.request_index == request)
        assert np.array_equal(rows.expert_ids, indices)
        assert np.allclose(rows.gate_weights, weights, atol=2e-3)


def test_decoding_with_a_cache_equals_one_full_pass(loaded, captured):
    model, tokenizer = loaded.model, loaded.tokenizer
    ids = tokenizer(PROSE, add_special_tokens=False)["input_ids"][:48]
    for _ in range(5):
        ids.append(int(routed_by_gate(model, ids)[2][-1].argmax()))
    indices, weights, _ = routed_by_gate(model, ids)
    rows = captured[0].take(captured[0].request_index == 0)
    # the cached pass rounds differently; a near tie may then choose another last expert
    assert (np.sort(rows.expert_ids) == np.sort(indices)).mean() > 0.99
    assert np.allclose(np.sort(rows.gate_weights), np.sort(weights), atol=0.02)


def test_same_seed_same_trace_and_sampling_differs(loaded, tmp_path):
    def made(**changes):
        settings = CaptureSettings(
            **({"sequence_tokens": 32, "max_tokens": 32, "generate_tokens": 8} | changes)
        )
        return capture(loaded, [Text("prose", PROSE)], settings, tmp_path / "t.safetensors").expert_ids

    assert np.array_equal(made(temperature=1.0, seed=1), made(temperature=1.0, seed=1))
    assert not np.array_equal(made(temperature=1.0, seed=1), made(temperature=1.0, seed=2))


def test_capture_survives_the_file(captured, tmp_path):
    back = read_trace(write_trace(tmp_path / "t.safetensors", captured[0]))
    assert np.array_equal(back.counts(), captured[0].counts())


def test_hooks_are_removed(loaded, captured):  # noqa: ARG001
    assert not any(module._forward_pre_hooks for module in loaded.model.modules())


def test_short_text_is_refused(loaded, tmp_path):
    with pytest.raises(InputError, match="at least sequence_tokens=256"):
        capture(loaded, [Text("prose", "short")], CaptureSettings(), tmp_path / "t.safetensors")


def test_own_type_of_the_weights_routes_almost_alike(loaded, tmp_path):
    own = load_model(CHECKPOINT)
    settings = CaptureSettings(sequence_tokens=128, max_tokens=128)
    text, out = [Text("prose", PROSE)], tmp_path / "t.safetensors"
    ids = [np.sort(capture(m, text, settings, out).expert_ids) for m in (loaded, own)]
    assert own.model.dtype != loaded.model.dtype
    assert (ids[0] == ids[1]).mean() > 0.9
    with pytest.raises(InputError, match="accepted: auto, float32"):
        load_model(CHECKPOINT, dtype="int4")
    with pytest.raises(InputError, match="cannot be loaded"):
        load_model(CHECKPOINT, device="no_such_device")


def test_folder_without_model_is_refused(tmp_path):
    pytest.importorskip("transformers")
    with pytest.raises(InputError, match=r"config\.json"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(InputError, match="safetensors"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"junk")
    with pytest.raises(InputError, match="cannot be loaded"):
        load_model(tmp_path)


class Stopped(Exception):
    pass


def test_interrupted_capture_goes_on_to_the_same_bytes(loaded, tmp_path):
    settings = CaptureSettings(
        sequence_tokens=32,
        max_tokens=160,
        generate_tokens=3,
        generate_requests=2,
        batch_requests=2,
        temperature=1.0,
    )
    texts = [Text("prose", PROSE), Text("python", CODE)]
    whole, out = tmp_path / "whole.safetensors", tmp_path / "t.safetensors"
    capture(loaded, texts, settings, whole)
    out.write_bytes(b"old result")
    calls = []

    def stop_after_three(*told):
        calls.append(told)
        if len(calls) == 3:
            raise Stopped

    with pytest.raises(Stopped):
        capture(loaded, texts, settings, out, progress=stop_after_three)
    assert out.read_bytes() == b"old result"
    kept = sorted(p.name for p in (tmp_path / "t.safetensors.partial").iterdir())
    assert kept == ["000000.safetensors", "000001.safetensors", "000002.safetensors", "manifest.json"]
    with pytest.raises(InputError, match=r"another capture \(texts, requests differ\)"):
        capture(loaded, texts[:1], settings, out)
    capture(loaded, texts, settings, out)
    assert out.read_bytes() == whole.read_bytes()
    assert not (tmp_path / "t.safetensors.partial").exists()
    manifest = json.loads((tmp_path / "t.manifest.json").read_text())
    assert manifest["tokens"] == read_trace(out).num_tokens
    assert manifest["settings"]["seed"] == 0
    assert set(manifest["blocks"].values()) == {"experts_call"}


def test_restart_discards_what_was_begun(loaded, tmp_path):
    out = tmp_path / "t.safetensors"
    begun = tmp_path / "t.safetensors.partial"
    begun.mkdir()
    (begun / "manifest.json").write_text("[1]")
    settings = CaptureSettings(sequence_tokens=32, max_tokens=32, weights=False)
    with pytest.raises(InputError, match="--restart"):
        capture(loaded, [Text("prose", PROSE)], settings, out)
    trace = capture(loaded, [Text("prose", PROSE)], settings, out, restart=True)
    assert trace.gate_weights is None
    assert trace.num_tokens == 32
