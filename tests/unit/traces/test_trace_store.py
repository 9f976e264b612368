import json
import struct
from dataclasses import replace

import numpy as np
import pytest
from trace_samples import small_trace

from moesim.errors import InputError
from moesim.traces import ExpertCounts, TraceInfo, read_counts, read_trace, write_counts, write_trace
from moesim.traces.safetensors import read_tensors, write_tensors
from moesim.traces.store import METADATA_KEY


@pytest.fixture
def path(tmp_path):
    return write_trace(tmp_path / "t.safetensors", small_trace())


def parts_of(path):
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def rebuild(path, header, data):
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)


def refused(path, *words, reader=read_trace):
    with pytest.raises(InputError) as caught:
        reader(path)
    told = str(caught.value)
    assert path.name in told
    for word in words:
        assert word in told, told
    return told


@pytest.mark.parametrize("shape", [{}, {"weights": False}, {"experts": 300, "top_k": 5}, {"empty": 0.3}])
def test_round_trip(tmp_path, shape):
    trace = small_trace(**shape)
    back = read_trace(write_trace(tmp_path / "t.safetensors", trace))
    assert back.info == trace.info
    for name in ("expert_ids", "request_index", "position", "step_index", "phase", "domain_index"):
        assert np.array_equal(getattr(back, name), getattr(trace, name))
    if trace.gate_weights is None:
        assert back.gate_weights is None
    else:
        assert np.array_equal(back.gate_weights, trace.gate_weights)


def test_same_trace_same_bytes(tmp_path):
    one = write_trace(tmp_path / "a", small_trace()).read_bytes()
    assert one == write_trace(tmp_path / "b", small_trace()).read_bytes()


def test_arrays_are_mapped_and_read_only(path):
    trace = read_trace(path, verify=False)
    base = trace.expert_ids
    while not isinstance(base, np.memmap):
        base = base.base
    with pytest.raises(ValueError, match="read-only"):
        trace.expert_ids[0, 0, 0] = 1


def test_the_reference_library_reads_and_writes_the_same_file(path, tmp_path):
    library = pytest.importorskip("safetensors.numpy")
    tensors = library.load_file(path)
    assert np.array_equal(tensors["expert_ids"], small_trace().expert_ids)
    text = {METADATA_KEY: parts_of(path)[0]["__metadata__"][METADATA_KEY]}
    library.save_file(tensors, tmp_path / "theirs.safetensors", metadata=text)
    assert np.array_equal(read_trace(tmp_path / "theirs.safetensors").counts(), small_trace().counts())


def test_absent_file(tmp_path):
    refused(tmp_path / "no.safetensors", "cannot be read")
    refused(tmp_path, "cannot be read")


def test_every_truncation_is_refused(path):
    raw = path.read_bytes()
    for length in (0, 1, 7, 8, 9, 100, len(raw) // 2, len(raw) - 1):
        path.write_bytes(raw[:length])
        refused(path, "accepted")


def test_bytes_behind_the_tensors_are_refused(path):
    path.write_bytes(path.read_bytes() + b"x")
    refused(path, "bytes of data")


@pytest.mark.parametrize("length", [0, 1, 10**6, 2**31, 2**60, 2**64 - 1])
def test_header_length_beyond_the_file(path, length):
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])
    refused(path, "header")


@pytest.mark.parametrize(
    "header",
    [
        b"{",
        b"[]",
        b"7",
        b"\xff\xfe{}",
        b'{"a":1,"a":2}',
        b"[" * 100_000,
        b'{"a":NaN}',
        b'{"n":' + b"9" * 5000 + b"}",
    ],
)
def test_header_that_is_no_object(path, header):
    rebuild(path, header, b"")
    refused(path)


def test_pickle_is_refused(path):
    path.write_bytes(b"\x80\x04\x95" + bytes(200))
    refused(path, "not safetensors")


def entry_changed(path, **changes):
    header, data = parts_of(path)
    header["expert_ids"].update(changes)
    rebuild(path, header, data)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"shape": [2**60]}, "needs 1152921504606846976 bytes"),
        ({"shape": [2**40, 2**40, 2**40]}, "needs"),
        ({"shape": [-1, 3, 2]}, "shape"),
        ({"shape": [60.0, 3, 2]}, "shape"),
        ({"shape": [True, 3, 2]}, "shape"),
        ({"shape": "60"}, "shape"),
        ({"shape": [1] * 9}, "shape"),
        ({"shape": None}, "shape"),
        ({"dtype": "BF16"}, "dtype"),
        ({"dtype": ["U8"]}, "dtype"),
        ({"dtype": "I8"}, "accepted: uint8/uint16"),
        ({"data_offsets": [0, 2**62]}, "data_offsets"),
        ({"data_offsets": [10, 0]}, "data_offsets"),
        ({"data_offsets": [-360, 0]}, "data_offsets"),
        ({"data_offsets": [0]}, "data_offsets"),
        ({"data_offsets": {"a": 1}}, "data_offsets"),
        ({"extra": 1}, "entry"),
    ],
)
def test_entry_that_lies(path, changes, word):
    entry_changed(path, **changes)
    refused(path, "expert_ids", word)


def test_overlapping_tensors(path):
    header, data = parts_of(path)
    header["phase"]["data_offsets"] = header["domain_index"]["data_offsets"]
    rebuild(path, header, data)
    refused(path, "overlaps")


def test_hole_between_tensors(path):
    header, data = parts_of(path)
    del header["gate_weights"]
    rebuild(path, header, data)
    refused(path, "hole")


def test_missing_and_unknown_tensor(tmp_path):
    trace = small_trace()
    path = write_trace(tmp_path / "t", trace)
    text = parts_of(path)[0]["__metadata__"]
    write_tensors(path, {"expert_ids": trace.expert_ids, "surprise": trace.phase}, text)
    told = refused(path, "surprise: unknown tensor", "step_index: missing tensor")
    assert told.count("missing tensor") == 5


def described(path, change):
    header, data = parts_of(path)
    fields = json.loads(header["__metadata__"][METADATA_KEY])
    header["__metadata__"][METADATA_KEY] = change(fields)
    rebuild(path, header, data)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema_version": 2}, ["schema_version", "accepted: 1"]),
        ({"num_experts": "8"}, ["num_experts", "int"]),
        ({"num_experts": True}, ["num_experts"]),
        ({"num_experts": 10**9}, ["num_experts", "65535"]),
        ({"num_experts": 1}, ["slots"]),
        ({"layer_indices": [3, 2, 1]}, ["increasing"]),
        ({"layer_indices": [1, 2]}, ["got 2 layers; accepted: 3"]),
        ({"layer_indices": [1, "2", 3]}, ["whole numbers"]),
        ({"domains": []}, ["domains"]),
        ({"domains": [1]}, ["words"]),
        ({"evidence": "certain"}, ["measured"]),
        ({"kind": "expert_counts"}, ["accepted: 'routing'"]),
        ({"more": 1}, ["unknown field"]),
        ({"model": None}, ["model"]),
    ],
)
def test_description_that_is_wrong(path, changes, words):
    described(path, lambda fields: json.dumps(fields | changes))
    refused(path, *words)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "null"])
def test_description_that_is_no_object(path, text):
    described(path, lambda _: text)
    refused(path)


def test_no_description(path):
    header, data = parts_of(path)
    rebuild(path, {k: v for k, v in header.items() if k != "__metadata__"}, data)
    refused(path, METADATA_KEY, "written by moesim")
    rebuild(path, header | {"__metadata__": {METADATA_KEY: 7}}, data)
    refused(path, "__metadata__")


def changed_value(tmp_path, name, index, value):
    trace = small_trace()
    array = getattr(trace, name).copy()
    array[index] = value
    return write_trace(tmp_path / "v.safetensors", replace(trace, **{name: array}))


def test_id_out_of_range_names_its_place(tmp_path):
    path = changed_value(tmp_path, "expert_ids", (41, 2, 1), 200)
    refused(path, "got 200 at token 41, layer 2, slot 1", "0 to 7, or 255")
    assert read_trace(path, verify=False).num_tokens == 60


@pytest.mark.parametrize(
    ("name", "index", "value", "words"),
    [
        ("expert_ids", (3, 1), 4, ["expert 4 twice at token 3, layer 1"]),
        ("phase", 7, 2, ["phase", "got 2 at token 7", "1 (decode)"]),
        ("domain_index", 59, 9, ["domain_index", "token 59", "1 (code)"]),
        ("request_index", 30, 0, ["request_index", "token 30", "non-decreasing"]),
        ("position", 5, 4, ["position", "got 4 after 4 at token 5", "increasing"]),
        ("position", 0, -1, ["position", "got -1 at token 0"]),
        ("phase", 1, 1, ["prefill before decode"]),
        ("gate_weights", (2, 0, 1), np.nan, ["gate_weights", "token 2, layer 0, slot 1"]),
    ],
)
def test_value_that_is_wrong_names_its_place(tmp_path, name, index, value, words):
    refused(changed_value(tmp_path, name, index, value), *words)


def test_faults_across_chunks_are_seen(tmp_path, monkeypatch):
    monkeypatch.setattr("moesim.traces.store.CHUNK_TOKENS", 10)
    read_trace(write_trace(tmp_path / "ok", small_trace()))
    refused(changed_value(tmp_path, "position", 25, 4), "at token 25")
    refused(changed_value(tmp_path, "request_index", slice(30, 60), 1), "request_index")


def test_counts_round_trip_and_negative(tmp_path):
    info = TraceInfo("m", 4, (0, 5), "recorder", ("all",))
    counts = np.arange(24).reshape(3, 2, 4)
    path = write_counts(tmp_path / "c.safetensors", ExpertCounts(info, counts))
    back = read_counts(path)
    assert back.info == info
    assert np.array_equal(back.counts, counts)
    refused(path, "expert_counts")
    counts[2, 1, 3] = -5
    write_counts(path, ExpertCounts(info, counts))
    refused(path, "got -5 at step 2, layer 1, expert 3", reader=read_counts)


def test_no_tensors_and_empty_tensors(tmp_path):
    path = write_tensors(tmp_path / "e", {"a": np.zeros((0, 4), np.int64)}, {"k": "v"})
    tensors, text = read_tensors(path)
    assert tensors["a"].shape == (0, 4)
    assert text == {"k": "v"}
    assert read_tensors(write_tensors(tmp_path / "n", {}, {}))[0] == {}


def test_failed_write_leaves_the_old_file(path, monkeypatch):
    before = path.read_bytes()
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        write_trace(path, small_trace(seed=1))
    assert path.read_bytes() == before
    assert len(list(path.parent.iterdir())) == 1
