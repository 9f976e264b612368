"""What each engine's file means, on files built by hand from its documented layout."""

import base64
import io
import json
import struct

import numpy as np
import pytest
from trace_samples import small_trace
from typer.testing import CliRunner

from moesim.cli.app import app
from moesim.errors import InputError
from moesim.traces import ExpertCounts, read_trace
from moesim.traces.arrays import npy_array, npy_bytes
from moesim.traces.formats import formats
from moesim.traces.interchange import Hints
from moesim.traces.safetensors import write_tensors


def read(name, path, **hints):
    return formats.build(name).read(path, Hints(**hints))


def test_vllm_openai_answer(tmp_path):
    ids = np.array([[[0, 0], [3, 1]], [[0, 0], [2, 3]], [[0, 0], [1, 0]]], np.uint8)
    answer = {
        "choices": [{"index": 0, "routed_experts": base64.b64encode(npy_bytes(ids)).decode()}],
        "usage": {"prompt_tokens": 2},
    }
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps(answer) + "\n")
    trace = read("vllm", path, num_experts=4)
    assert trace.info.layer_indices == (1,)  # the first layer is dense: all zeros
    assert trace.expert_ids[:, 0].tolist() == [[3, 1], [2, 3], [1, 0]]
    assert trace.phase.tolist() == [0, 0, 1]


def test_sglang_request_is_raw_int32(tmp_path):
    ids = np.array([[[0, 0], [5, 7]], [[0, 0], [6, 2]]], np.int32)
    encoded = base64.b64encode(ids.tobytes()).decode()
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"meta_info": {"routed_experts": encoded, "prompt_tokens": 1}}]))
    trace = read("sglang_request", path, num_experts=8, top_k=2, num_hidden_layers=2)
    assert trace.expert_ids[:, 0].tolist() == [[5, 7], [6, 2]]
    assert trace.phase.tolist() == [0, 1]
    with pytest.raises(InputError, match="multiple of 3 x 2"):
        read("sglang_request", path, top_k=2, num_hidden_layers=3)
    with pytest.raises(InputError, match="num_hidden_layers: .*give --model"):
        read("sglang_request", path)


def test_tensorrt_counts_are_summed_over_ranks(tmp_path):
    (tmp_path / "meta_info.json").write_text('{"num_experts": 3, "num_experts_per_token": 1}')
    one = {f"{s}_{layer}": np.array([1, 2, s]) for s in (100, 101) for layer in (3, 4)}
    for rank in range(2):
        write_tensors(tmp_path / f"rank{rank}.safetensors", one, {})
    counts = read("tensorrt_llm", tmp_path)
    assert isinstance(counts, ExpertCounts)
    assert counts.info.layer_indices == (3, 4)
    assert counts.counts[:, 0].tolist() == [[2, 4, 200], [2, 4, 202]]


def test_megatron_lines(tmp_path):
    lines = [
        {"step": 0, "block": "decoder", "layer": layer, "rank": 0, "top_indices": [[layer, 3], [2, 0]]}
        for layer in (1, 2 - 1 + 1)
    ]
    lines[1]["top_indices"] = [[1, 3], [0, 2]]
    lines.append({"step": 0, "block": "mtp", "layer": 9, "top_indices": [[0, 1], [1, 2]]})
    path = tmp_path / "router_trace_rank0.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    for where in (path, tmp_path):
        trace = read("megatron", where, num_experts=4)
        assert trace.info.layer_indices == (1, 2)
        assert trace.expert_ids.tolist() == [[[1, 3], [1, 3]], [[2, 0], [0, 2]]]


def gguf(tensors, *, kind="imatrix", version=3):
    def text(word):
        return struct.pack("<Q", len(word)) + word.encode()

    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), 2)
    head += text("general.type") + struct.pack("<I", 8) + text(kind)
    head += text("some.list") + struct.pack("<IIQ", 9, 4, 2) + struct.pack("<II", 1, 2)
    data = b""
    for name, array in tensors.items():
        shape = array.shape[::-1]
        head += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, len(data))
        data += array.astype("<f4").tobytes().ljust(-(-array.nbytes // 32) * 32, b"\0")
    return head.ljust(-(-len(head) // 32) * 32, b"\0") + data


def test_imatrix_counts(tmp_path):
    path = tmp_path / "imatrix.gguf"
    tensors = {
        f"blk.{layer}.ffn_down_exps.weight.counts": np.array([[1.0], [2.0], [layer]]).astype("f4")
        for layer in (2, 11)
    }
    tensors["blk.2.ffn_down_exps.weight.in_sum2"] = np.zeros((3, 5), "f4")
    path.write_bytes(gguf(tensors))
    counts = read("llama_imatrix", path)
    assert counts.info.layer_indices == (2, 11)
    assert counts.counts.tolist() == [[[1, 2, 2], [1, 2, 11]]]
    for size in range(0, path.stat().st_size - 128, 7):  # before the data of the last counts
        short = tmp_path / "short.gguf"
        short.write_bytes(gguf(tensors)[:size])
        with pytest.raises(InputError):
            read("llama_imatrix", short)
    path.write_bytes(gguf(tensors, kind="model"))
    with pytest.raises(InputError, match="accepted: 'imatrix'"):
        read("llama_imatrix", path)


def test_verl_padding(tmp_path):
    batch = np.zeros((2, 4, 1, 2), np.int32)
    batch[0, 1:3, 0] = [[0, 1], [3, 2]]  # left and right padding
    batch[1, :, 0] = [[1, 0], [2, 0], [3, 0], [1, 2]]
    path = tmp_path / "b.npy"
    path.write_bytes(npy_bytes(batch))
    trace = read("verl", path, num_experts=4)
    assert np.bincount(trace.request_index).tolist() == [2, 4]
    assert trace.expert_ids[:2, 0].tolist() == [[0, 1], [3, 2]]


def test_objects_and_lies_in_npy_are_refused(tmp_path):
    stream = io.BytesIO()
    np.save(stream, np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(InputError, match="plain numbers"):
        npy_array(stream.getvalue(), tmp_path / "x.npy")
    whole = npy_bytes(np.zeros((4, 5), np.int32))
    lie = whole.replace(b"(4, 5)", b"(4, 9999999999)"[:6]).replace(b"(4, 99", b"(999, ")
    for content in (whole[:-1], whole + b"x", lie):
        with pytest.raises(InputError):
            npy_array(content, tmp_path / "x.npy")


def test_text_formats_name_the_line(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("request,position,layer,expert0,expert1\n0,0,1,3,2\n0,1,1,x,2\n")
    with pytest.raises(InputError, match="line 3: got 'x'"):
        read("csv", path)
    path.write_text("request,position,layer,expert0,expert1\n0,0,1,3,2\n0,1,1,2,2\n")
    with pytest.raises(InputError, match="expert 2 twice"):
        read("csv", path)
    lines = tmp_path / "t.jsonl"
    lines.write_text('{"experts": [[1, 2]]}\n{"experts": [[1, 1.5]]}\n')
    with pytest.raises(InputError, match="experts of line 2: accepted: whole numbers"):
        read("jsonl", lines)
    lines.write_text('{"experts": [[1, 2]]}\n{"experts": [[2, 0]]}\n')
    assert read("jsonl", lines).expert_ids.tolist() == [[[1, 2]], [[2, 0]]]


def test_empty_slots_are_refused_where_an_engine_has_none(tmp_path):
    trace = small_trace(empty=0.5)
    for name in ("vllm", "verl", "megatron_replay", "sglang_request"):
        with pytest.raises(InputError, match="empty slots"):
            formats.build(name).write(tmp_path / "x.npy", trace)
    with pytest.raises(InputError, match="accepted: 1 for ExFlow"):
        formats.build("exflow").write(tmp_path / "x.npy", small_trace())


def test_convert_command(tmp_path):
    trace = small_trace(weights=False, domains=("all",))
    vllm, back = tmp_path / "folder", tmp_path / "back.safetensors"
    formats.build("vllm").write(vllm, trace)
    run = [
        "trace",
        "convert",
        str(vllm),
        str(back),
        "--from",
        "vllm",
        "--experts",
        "8",
        "--moe-layers",
        "1-3",
    ]
    assert CliRunner().invoke(app, run).exit_code == 0
    assert np.array_equal(read_trace(back).expert_ids, trace.expert_ids)
    assert CliRunner().invoke(app, run).exit_code == 3  # exists
    wrong = ["trace", "convert", str(vllm), str(tmp_path / "x"), "--from", "vllm", "--to", "llama_imatrix"]
    result = CliRunner().invoke(app, wrong)
    assert result.exit_code == 3
    assert "can only be read" in result.stderr
    shown = CliRunner().invoke(app, ["trace", "show", f"vllm:{vllm}"])
    assert "expert" in shown.stdout


def test_model_completes_the_hints(tmp_path):
    ids = np.zeros((4, 27, 6), np.uint8)
    ids[:, 1:] = np.arange(6)
    path = tmp_path / "r.npy"
    path.write_bytes(npy_bytes(ids))
    out = tmp_path / "o.safetensors"
    run = ["trace", "convert", str(path), str(out), "--from", "vllm", "--model", "deepseek_v2_lite"]
    result = CliRunner().invoke(app, run)
    assert result.exit_code == 0, result.output
    trace = read_trace(out)
    assert (trace.num_experts, trace.info.layer_indices) == (64, tuple(range(1, 27)))


# torch files


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def test_sglang_stat(torch, tmp_path):
    counts = np.zeros((5, 4, 6), np.int32)
    counts[1:3, 1:] = np.arange(6) + 1
    path = tmp_path / "s.pt"
    dump = {"rank": 0, "logical_count": torch.from_numpy(counts)}
    torch.save(dump | {"average_utilization_rate_over_window": None}, path)
    found = read("sglang", path)
    assert found.info.layer_indices == (1, 2, 3)
    assert found.counts.shape == (2, 3, 6)
    again = tmp_path / "again.pt"
    formats.build("sglang").write(again, found)
    assert np.array_equal(read("sglang", again).counts, found.counts)


def per_token(torch, rank=0, ids=None):
    """Two requests prefilled, then two decode passes; experts stored as physical ids."""
    logical_to_physical = np.array([2, 0, 3, 1])
    mapping = np.tile(np.argsort(logical_to_physical), (2, 1))
    chosen = [[[0, 1], [1, 2], [2, 3]], [[3, 0], [0, 2]], [[1, 3], [2, 0]]] if ids is None else ids
    records = []
    for step, rows in enumerate(chosen):
        physical = logical_to_physical[np.array(rows)]
        layers = np.full((2, len(rows), 8), -1, np.int32)
        layers[:, :, :2] = physical
        positions = [0, 1, 0] if step == 0 else [step + 1, step]
        records.append(
            {
                "forward_pass_id": step,
                "rank": rank,
                "gatherer_key": "primary",
                "global_physical_count": torch.zeros(2, 4, dtype=torch.int32),
                "input_ids": list(range(len(rows))),
                "positions": positions,
                "extend_seq_lens": [2, 1] if step == 0 else None,
                "forward_mode": 1 if step == 0 else 2,
                "topk_ids_of_layer": torch.from_numpy(layers),
            }
        )
    return {"records": records, "last_physical_to_logical_map": torch.from_numpy(mapping)}


def test_sglang_per_token(torch, tmp_path):
    for rank in range(2):  # tensor-parallel ranks see the same tokens: read once
        torch.save(per_token(torch, rank), tmp_path / f"r_{rank}.pt")
    trace = read("sglang", tmp_path, num_experts=4)
    assert trace.request_index.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert trace.position.tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert trace.phase.tolist() == [0, 0, 1, 1, 0, 1, 1]
    assert trace.expert_ids[:, 1].tolist() == [[0, 1], [1, 2], [3, 0], [1, 3], [2, 3], [0, 2], [2, 0]]


def test_sglang_per_pass(torch, tmp_path):
    dump = per_token(torch)
    for record in dump["records"]:
        del record["topk_ids_of_layer"]
        record["global_physical_count"] = torch.tensor([[1, 2, 3, 4]] * 2)
    torch.save(dump, tmp_path / "p.pt")
    counts = read("sglang", tmp_path / "p.pt")
    assert counts.counts[0, 0].tolist() == [3, 1, 4, 2]  # logical 0 lives in physical slot 2


def test_hostile_torch_files(torch, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (print, ("executed",))

    path = tmp_path / "bomb.pt"
    torch.save({"logical_count": Bomb()}, path)
    with pytest.raises(InputError, match="tensors and plain values"):
        read("sglang", path)
    for wrong in (
        [1, 2],
        {"records": 5, "last_physical_to_logical_map": torch.zeros(2, 2, dtype=torch.int64)},
    ):
        torch.save(wrong, path)
        with pytest.raises(InputError):
            read("sglang", path)
    whole = tmp_path / "w.pt"
    torch.save(per_token(torch), whole)
    content = whole.read_bytes()
    for at in range(0, len(content), max(1, len(content) // 60)):
        path.write_bytes(content[:at])
        with pytest.raises(InputError):
            read("sglang", path)
        broken = bytearray(content)
        broken[at] ^= 255
        path.write_bytes(broken)
        try:
            read("sglang", path)
        except InputError:
            continue


def test_torch_tensor_round_trip(torch, tmp_path):
    trace = small_trace(weights=False)
    for name in ("megatron_replay", "verl"):
        path = tmp_path / f"{name}.pt"
        formats.build(name).write(path, trace)
        again = read(name, path, num_experts=8, moe_layers=(1, 2, 3))
        assert np.array_equal(again.expert_ids, trace.expert_ids)


def test_without_torch_the_install_line_is_told(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch", None)
    path = tmp_path / "s.pt"
    path.write_bytes(b"x")
    with pytest.raises(InputError, match=r"pip install moesim\[capture\]"):
        read("sglang", path)


def test_flame_parquet(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    rng = np.random.default_rng(0)
    ids = np.stack([rng.permutation(8)[:3] for _ in range(10)])
    for layer in (2, 3):
        table = arrow.table(
            {
                "indices": arrow.array(ids.tolist(), arrow.list_(arrow.int16())),
                "scores": arrow.array(rng.random((10, 3)).tolist(), arrow.list_(arrow.float32())),
            }
        )
        parquet.write_table(table, tmp_path / f"layer_{layer:02d}.parquet")
    trace = read("flame", tmp_path, num_experts=8)
    assert trace.info.layer_indices == (2, 3)
    assert np.array_equal(trace.expert_ids[:, 0], ids)
    (tmp_path / "layer_04.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(InputError):
        read("flame", tmp_path)


def test_flame_without_pyarrow(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "layer_01.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"pip install moesim\[parquet\]"):
        read("flame", tmp_path)
