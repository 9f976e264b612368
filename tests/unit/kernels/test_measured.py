"""Measurement files: what is written is read back, and what is broken is said with its line."""

import numpy as np
import pytest

from moesim.errors import InputError
from moesim.kernels.measured import FAMILIES, MeasuredTable, append_csv, joined, read_csv, read_folder

PROVENANCE = {"date": "2026-01-02", "command": "moesim calibrate measure", "torch": "2.9"}


def gemm_table(source="cublas", rows=(1, 128), device="h100_sxm"):
    size = len(rows)
    columns = {"rows": np.array(rows, float), "n": np.full(size, 4096.0), "k": np.full(size, 7168.0)}
    columns["count"] = np.ones(size)
    seconds = np.arange(1, size + 1) * 1.25e-5
    return MeasuredTable("gemm", device, source, "bf16", columns, seconds, provenance=PROVENANCE)


def test_round_trip_and_append(tmp_path):
    path = tmp_path / "2026-01-02-gemm.csv"
    append_csv(path, gemm_table())
    before = path.read_text()
    append_csv(path, gemm_table(rows=(256,)))
    append_csv(path, gemm_table(source="vllm_cutlass"))
    assert path.read_text().startswith(before)
    first, second = read_csv(path)
    assert (first.source, second.source) == ("cublas", "vllm_cutlass")
    assert first.columns["rows"].tolist() == [1, 128, 256]
    assert first.seconds.tolist() == [1.25e-5, 2.5e-5, 1.25e-5]
    assert first.provenance["torch"] == "2.9"
    assert np.isnan(first.spread_fraction).all()
    assert [t.num_rows for t in read_folder(tmp_path)] == [3, 2]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_round_trips(tmp_path, family):
    text = {"direction": "h2d", "model": "tiny", "phase": "decode", "expert_tokens": "3 1|2 2"}
    columns = {
        name: np.array([text[name]] * 2) if name in text else np.array([3.0, 5.0])
        for name in FAMILIES[family]
    }
    table = MeasuredTable(family, "cpu", "s", "fp32", columns, np.array([1e-3, 2e-3]), provenance=PROVENANCE)
    append_csv(tmp_path / "x.csv", table)
    (back,) = read_csv(tmp_path / "x.csv")
    for name, column in columns.items():
        assert back.columns[name].tolist() == column.tolist()


def test_rows_chosen_and_joined():
    table = gemm_table()
    assert table.at(table.columns["rows"] > 1).seconds.tolist() == [2.5e-5]
    (both,) = joined([table, table])
    assert both.num_rows == 4


BREAKS = [
    (lambda s: "name,value\n1,2\n", "not a moesim measurement"),
    (lambda s: "", "not a moesim measurement"),
    (lambda s: s.replace("schema_version: 1", "schema_version: 9"), "schema_version: got '9'"),
    (lambda s: s.replace("family: gemm", "family: gem"), "did you mean 'gemm'"),
    (lambda s: s.replace("family: gemm", "family: moe"), r"x.csv:7.*heading"),
    (lambda s: s.replace("1.25e-05", "-1"), r"x.csv:8  seconds: got -1; accepted: a time above 0"),
    (lambda s: s.replace("1.25e-05", "fast"), r"x.csv:8  seconds: got 'fast'; accepted: a number"),
    (lambda s: s.replace("cublas,bf16,1,", "cublas,bf16,"), r"x.csv:8: 8 cells; accepted: 9"),
    (lambda s: s[:-4], "cut short"),
    (lambda s: s.replace("# torch: 2.9", "# torch"), "expected '# key: value'"),
]


@pytest.mark.parametrize(("spoil", "said"), BREAKS)
def test_broken_files_are_refused_with_their_line(tmp_path, spoil, said):
    path = tmp_path / "x.csv"
    append_csv(path, gemm_table())
    path.write_text(spoil(path.read_text()))
    with pytest.raises(InputError, match=said):
        read_csv(path)


def test_binary_missing_and_empty(tmp_path):
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot read"):
        read_csv(tmp_path / "b.csv")
    with pytest.raises(InputError, match="cannot read"):
        read_csv(tmp_path / "absent.csv")
    with pytest.raises(InputError, match="no measurement"):
        read_folder(tmp_path / "nowhere")


def test_foreign_rows_are_not_appended(tmp_path):
    path = tmp_path / "x.csv"
    append_csv(path, gemm_table())
    with pytest.raises(InputError, match="device: got 'b200_sxm'; accepted: h100_sxm"):
        append_csv(path, gemm_table(device="b200_sxm"))


def test_wrong_columns_and_lengths():
    with pytest.raises(InputError, match="accepted: moved_bytes"):
        MeasuredTable("elementwise", "d", "s", "bf16", {"bytes": np.ones(1)}, np.ones(1))
    with pytest.raises(InputError, match="2 rows each"):
        MeasuredTable("elementwise", "d", "s", "bf16", {"moved_bytes": np.ones(1)}, np.ones(2))
    with pytest.raises(InputError, match="one of gemm"):
        MeasuredTable("conv", "d", "s", "bf16", {}, np.ones(2))
