"""Importer of public tables: the routing behind a label, and the rows that are left out."""

import numpy as np
import pytest

from moesim.errors import InputError
from moesim.kernels import aiconfigurator
from moesim.kernels.aiconfigurator import _Source, routed_counts
from moesim.kernels.measured import FAMILIES


def source_of(family) -> _Source:
    return next(s for s in aiconfigurator.SOURCES if s.family == family)


@pytest.mark.parametrize("distribution", ["balanced", "power_law_1.01", "power_law_1.2"])
@pytest.mark.parametrize(("tokens", "num_experts", "top_k"), [(1, 8, 2), (7, 60, 4), (4096, 256, 8)])
def test_every_selection_is_counted_once(distribution, tokens, num_experts, top_k):
    counts = routed_counts(tokens, num_experts, top_k, distribution)
    assert (counts.sum(axis=1) == tokens * top_k).all()
    assert (counts >= 0).all()
    assert (counts <= tokens).all()
    assert (counts == routed_counts(tokens, num_experts, top_k, distribution)).all()


def test_balanced_is_balanced_and_power_laws_are_not():
    assert np.ptp(routed_counts(2048, 256, 8, "balanced")) == 0
    ratio = [routed_counts(4096, 256, 8, f"power_law_{a}").max(1).mean() / 128 for a in ("1.01", "1.2")]
    # published histogram of the same generator: 8.4 and 15.9 times the mean
    assert 5 < ratio[0] < 13
    assert ratio[0] < ratio[1] < 25


def expert_rows(**changes):
    rows = {
        "kernel_source": ["x_cutlass", "x_nongated"],
        "num_tokens": [512, 512],
        "hidden_size": [7168, 7168],
        "inter_size": [2048, 2048],
        "topk": [8, 8],
        "num_experts": [256, 256],
        "moe_tp_size": [1, 4],
        "moe_ep_size": [8, 1],
        "distribution": ["balanced", "power_law_1.2"],
        "latency": [1.0, 2.0],
    }
    return {name: np.array(column) for name, column in (rows | changes).items()}


def test_expert_columns_are_those_of_the_busiest_rank():
    columns = source_of("moe").columns(expert_rows())
    assert set(columns) == set(FAMILIES["moe"])
    assert columns["rows"].tolist() == [512, 4096]
    assert columns["touched"][0] == 32
    assert columns["padded_16"][0] == 512
    assert columns["width"].tolist() == [2048, 512]
    assert columns["gated"].tolist() == [1, 0]
    assert columns["all_rows"].tolist() == [4096, 4096]


def test_mislabelled_routing_is_left_out_where_it_happened():
    kept = source_of("moe").kept
    assert not kept(expert_rows(), "vllm").any()
    assert kept(expert_rows(), "trtllm").all()
    assert kept(expert_rows(num_experts=[128, 128]), "sglang").all()


def test_decode_rows_left_out():
    rows = {
        "kernel_source": ["fa3", "fa4", "fa3", "fa3"],
        "batch_size": [1, 1, 1, 1],
        "step": [9, 9, 9, 9],
        "num_heads": [32, 32, 64, 32],
        "num_key_value_heads": [8, 8, 1, 0],
        "head_dim": [128, 512, 128, 128],
        "window_size": [0, 0, 0, 128],
        "latency": [1.0, 1.0, 1.0, 1.0],
        "attn_dtype": ["bfloat16"] * 4,
        "kv_cache_dtype": ["fp8", "bfloat16", "strange", "fp8"],
    }
    rows = {name: np.array(column) for name, column in rows.items()}
    source = source_of("attention_decode")
    assert source.kept(rows, "vllm").tolist() == [True, False, False, False]
    assert source.dtype(rows).tolist() == ["bf16_kv_fp8", "bf16", "", "bf16_kv_fp8"]
    assert source.columns(rows)["num_kv_heads"].tolist() == [8, 8, 1, 32]
    without = {name: column for name, column in rows.items() if name != "window_size"}
    assert source.columns(without)["window"].tolist() == [0, 0, 0, 0]


def test_repeated_shapes_become_their_geometric_mean():
    columns, seconds = aiconfigurator._averaged({"n": np.array([1.0, 2, 1])}, np.array([1.0, 5, 4]))
    assert columns["n"].tolist() == [1, 2]
    assert seconds == pytest.approx([2, 5])


def test_releases_are_ordered_by_number(tmp_path):
    paths = [tmp_path / "vllm" / name / "x.parquet" for name in ("0.5.6.post2", "0.5.14", "0.5.9")]
    assert [p.parts[-2] for p in sorted(paths, key=aiconfigurator._release)] == [
        "0.5.6.post2",
        "0.5.9",
        "0.5.14",
    ]


def test_unknown_device_and_missing_package(monkeypatch):
    with pytest.raises(InputError, match="one that aiconfigurator_core has measured, a100_sxm_80"):
        aiconfigurator.read_tables("t4")
    monkeypatch.setattr(aiconfigurator, "PACKAGE", "a_package_that_is_not_there")
    with pytest.raises(InputError, match="after it is installed: pip install"):
        aiconfigurator.read_tables("h100_sxm")
