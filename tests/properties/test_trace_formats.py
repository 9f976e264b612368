"""Laws of reading and writing other programs' files: nothing is lost, and broken files are told."""

import struct
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trace_samples import small_trace

from moesim.errors import InputError
from moesim.traces import ExpertCounts, RoutingTrace, TraceInfo
from moesim.traces.formats import Writable, formats
from moesim.traces.interchange import Hints
from moesim.traces.matched import read_parameters
from moesim.traces.store import read_counts, verify_trace, write_counts

FILE = {
    "csv": "t.csv",
    "jsonl": "t.jsonl",
    "npz": "t.npz",
    "moesim": "t.safetensors",
    "megatron": "t.jsonl",
    "megatron_replay": "t.npy",
    "verl": "t.npy",
    "vllm": "folder",
    "sglang_request": "t.jsonl",
    "tensorrt_llm": "folder",
    "exflow": "t.npy",
    "sglang": "t.pt",
}
FULL = {"csv", "jsonl", "moesim"}
"""Formats that keep everything a trace knows."""
NO_EMPTY = {"megatron_replay", "verl", "vllm", "sglang_request", "exflow"}
WITH_REQUESTS = set(FILE) - {"megatron_replay", "exflow", "sglang"}
PLAIN = sorted(set(FILE) - {"sglang"})


@st.composite
def traces(draw, name):
    experts = draw(st.integers(2, 300))
    top_k = 1 if name == "exflow" else draw(st.integers(2, min(experts, 5)))
    requests = draw(st.integers(1, 4))
    return small_trace(
        tokens=requests * draw(st.integers(1, 5)),
        layers=draw(st.integers(1, 3)),
        experts=experts,
        top_k=top_k,
        requests=requests,
        seed=draw(st.integers(0, 99)),
        domains=("prose", "code") if requests > 1 else ("prose",),
        weights=draw(st.booleans()),
        empty=0.0 if name in NO_EMPTY else draw(st.sampled_from([0.0, 0.2])),
    )


def hints_of(trace):
    layers = trace.info.layer_indices
    return Hints(
        trace.info.model, trace.num_experts, trace.top_k, layers[-1] + 1, layers, "", trace.info.date
    )


@pytest.mark.parametrize("name", PLAIN)
@settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_round_trip(name, data):
    trace = data.draw(traces(name))
    form = formats.build(name)
    assert isinstance(form, Writable)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / FILE[name]
        files = form.write(path, trace)
        assert all(file.exists() for file in files)
        again = form.read(path, hints_of(trace))
        verify_trace(again)
        assert again.expert_ids.dtype == trace.expert_ids.dtype
        assert np.array_equal(again.expert_ids, trace.expert_ids)
        assert again.info.layer_indices == trace.info.layer_indices
        assert again.num_experts == trace.num_experts
        if name in WITH_REQUESTS:
            assert np.array_equal(again.request_index, trace.request_index)
        if name in FULL:
            for field in ("position", "step_index", "phase", "domain_index"):
                assert np.array_equal(getattr(again, field), getattr(trace, field)), field
            assert (again.gate_weights is None) == (trace.gate_weights is None)
            if trace.gate_weights is not None:
                assert np.array_equal(again.gate_weights, trace.gate_weights)
        first = {file: file.read_bytes() for file in files}
        form.write(path, again)
        assert first == {file: file.read_bytes() for file in files}


@pytest.mark.parametrize("name", ["moesim", "tensorrt_llm"])
@settings(max_examples=15)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 9), st.integers(0, 99))
def test_counts_round_trip(name, steps, layers, experts, seed):
    values = np.random.default_rng(seed).integers(1, 50, (steps, layers, experts))
    counts = ExpertCounts(TraceInfo("m", experts, tuple(range(3, 3 + layers))), values)
    form = formats.build(name)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / FILE[name]
        form.write(path, counts)
        again = form.read(path, Hints("m"))
    assert np.array_equal(again.counts, values)
    assert again.info.layer_indices == counts.info.layer_indices


def mutated(content, data):
    """Bytes cut, flipped, repeated or replaced."""
    raw = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        kind = data.draw(st.sampled_from(["cut", "flip", "insert", "word"]))
        at = data.draw(st.integers(0, max(0, len(raw) - 1)))
        if kind == "cut":
            del raw[at:]
        elif kind == "flip" and raw:
            raw[at] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "insert":
            raw[at:at] = data.draw(st.binary(max_size=6))
        else:
            words = [
                b"-1",
                b"99999999999999999999",
                b"null",
                b"[[[[",
                b'"x"',
                b"1e999",
                b"{}",
                b"NaN",
                b"\xff",
            ]
            word = data.draw(st.sampled_from(words))
            raw[at : at + len(word)] = word
    return bytes(raw)


@pytest.mark.parametrize("name", PLAIN)
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_broken_files_are_input_errors(name, data):
    """Either the file still says something valid, or an InputError; nothing else ever escapes."""
    trace = small_trace(tokens=6, layers=2, experts=9, top_k=1 if name == "exflow" else 2, requests=2)
    form = formats.build(name)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / FILE[name]
        files = form.write(path, trace)
        victim = data.draw(st.sampled_from(files))
        content = mutated(victim.read_bytes(), data)
        victim.write_bytes(content)
        try:
            found = form.read(path, replace(hints_of(trace), num_experts=None))
        except InputError:
            return
        if isinstance(found, RoutingTrace):
            verify_trace(found)


def survives(read, path, content):
    """The content is read as something valid, or refused with an InputError; nothing else escapes."""
    path.write_bytes(content)
    try:
        found = read(path)
    except InputError:
        return
    if isinstance(found, RoutingTrace):
        verify_trace(found)


def gguf(name="blk.0.ffn_down_exps.weight.counts", experts=4):
    """Smallest importance matrix."""

    def text(value):
        return struct.pack("<Q", len(value)) + value.encode()

    head = (
        b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + text("general.type") + struct.pack("<I", 8) + text("imatrix")
    )
    head += text(name) + struct.pack("<IQIQ", 1, experts, 0, 0)
    return head + b"\0" * (-len(head) % 32) + np.arange(experts, dtype="<f4").tobytes()


@settings(max_examples=150)
@given(st.data())
def test_broken_importance_matrices_are_input_errors(data):
    form = formats.build("llama_imatrix")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.gguf"
        path.write_bytes(gguf())
        assert form.read(path, Hints("m")).counts.tolist() == [[[0, 1, 2, 3]]]
        survives(lambda p: form.read(p, Hints("m")), path, mutated(gguf(), data))


@settings(max_examples=40)
@given(st.data())
def test_broken_parquet_is_an_input_error(data):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    form = formats.build("flame")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layer_02.parquet"
        columns = {"indices": [[0, 1], [2, 3]], "scores": arrow.array([[0.5, 0.5]] * 2)}
        parquet.write_table(arrow.table(columns), path)
        content = mutated(path.read_bytes(), data)
        survives(lambda p: form.read(p.parent, Hints("m", 4)), path, content)


SHIPPED = Path(__file__).resolve().parents[2] / "traces" / "matched" / "tiny_olmoe_matched.json"


@settings(max_examples=80)
@given(st.data())
def test_broken_parameters_are_input_errors(data):
    with tempfile.TemporaryDirectory() as folder:
        survives(read_parameters, Path(folder) / "p.json", mutated(SHIPPED.read_bytes(), data))


@settings(max_examples=80)
@given(st.data())
def test_broken_counts_are_input_errors(data):
    counts = ExpertCounts(TraceInfo("m", 3, (1, 2)), np.arange(6).reshape(1, 2, 3))
    with tempfile.TemporaryDirectory() as folder:
        path = write_counts(Path(folder) / "c.safetensors", counts)
        survives(read_counts, path, mutated(path.read_bytes(), data))


READERS = sorted(name for name, _ in formats.items())


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=25)
@given(st.binary(max_size=80), st.sampled_from([".npy", ".npz", ".json", ".jsonl", ".safetensors", ".gguf"]))
def test_noise_is_an_input_error(name, noise, suffix):
    if name == "sglang":
        pytest.importorskip("torch")
    form = formats.build(name)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"noise{suffix}"
        path.write_bytes(noise)
        with pytest.raises(InputError):
            form.read(path, Hints("m", 8, 2, 4, (1, 2)))
        with pytest.raises(InputError):
            form.read(Path(folder) / "absent", Hints("m", 8, 2, 4, (1, 2)))
