"""``moesim calibrate``: measured files to fits, errors shown, mistakes named."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from moesim.cli.app import app
from moesim.kernels.measured import MeasuredTable, append_csv


def run(*words):
    return CliRunner().invoke(app, ["calibrate", *map(str, words)])


def write_measurements(folder, size=60, device="epyc_2core_vm"):
    rng = np.random.default_rng(0)
    columns = {
        "rows": rng.integers(1, 512, size).astype(float),
        "n": 64.0 * rng.integers(1, 30, size),
        "k": 64.0 * rng.integers(1, 30, size),
        "count": np.ones(size),
    }
    flops = 2 * columns["rows"] * columns["n"] * columns["k"]
    weights = 4 * columns["n"] * columns["k"]
    seconds = (5e-6 + flops / 5e10 + weights / 1e10) * np.exp(0.05 * rng.standard_normal(size))
    table = MeasuredTable(
        "gemm", device, "torch", "fp32", columns, seconds, provenance={"date": "2026-01-02"}
    )
    append_csv(folder / "2026-01-02-gemm.csv", table)


@pytest.fixture
def fitted(tmp_path, monkeypatch):
    write_measurements(tmp_path / "csv")
    monkeypatch.setenv("MOESIM_PATH", str(tmp_path))
    out = tmp_path / "calibration" / "fits" / "epyc_2core_vm.yaml"
    result = run("fit", "epyc_2core_vm", "--from", tmp_path / "csv", "--out", out, "--quick", "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout), out


def test_fit_writes_a_file_and_says_how_good_it_is(fitted):
    document, out = fitted
    assert document["command"] == "calibrate fit"
    (row,) = document["rows"]
    assert row["num_rows"] == 60
    assert row["held_out"]["median_ape"] < 0.15
    assert out.read_text().startswith("# Made by `moesim calibrate`")


def test_check_reads_what_was_recorded(fitted):
    document = json.loads(run("check", "epyc_2core_vm", "--json").stdout)
    row = document["rows"][0]
    assert {
        "device",
        "family",
        "dtype",
        "regime",
        "tier",
        "n",
        "median_ape",
        "p90_ape",
        "bias",
        "coverage",
    } <= set(row)
    assert (row["tier"], row["regime"], row["n"]) == ("fitted", "all", 60)
    assert "gemm" in run("check", "epyc_2core_vm", "--kernels").stdout
    assert run("check", "epyc_2core_vm", "--within", 0.5).exit_code == 0
    missed = run("check", "epyc_2core_vm", "--within", 0.001)
    assert missed.exit_code == 5
    assert "epyc_2core_vm gemm" in missed.stderr


def test_mistakes_are_named(tmp_path):
    unknown = run("fit", "no_such_device", "--from", tmp_path)
    assert (unknown.exit_code, "no file 'no_such_device'" in unknown.stderr) == (3, True)
    empty = run("fit", "epyc_2core_vm", "--from", tmp_path)
    assert (empty.exit_code, "no measurement" in empty.stderr) == (3, True)
    write_measurements(tmp_path / "few", size=4)
    few = run("fit", "epyc_2core_vm", "--from", tmp_path / "few", "--out", tmp_path / "x.yaml")
    assert (few.exit_code, "4 rows are too few" in few.stderr) == (3, True)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.csv").write_text("a,b\n1,2\n")
    bad = run("fit", "epyc_2core_vm", "--from", tmp_path / "bad")
    assert (bad.exit_code, "not a moesim measurement" in bad.stderr) == (3, True)
    write_measurements(tmp_path / "other", device="h100_sxm")
    other = run("fit", "epyc_2core_vm", "--from", tmp_path / "other")
    assert (other.exit_code, "got 'h100_sxm'; accepted: epyc_2core_vm" in other.stderr) == (3, True)
    assert run("import", "nothing").exit_code == 3
    assert run("check", "--against", "hearsay").exit_code == 3
