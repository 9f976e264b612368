import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from moesim.cli.app import app
from moesim.validate.claims import Claim

runner = CliRunner()

HEADER = (
    "id,source,model,device,engine,engine_version,gemm_dtype,expert_dtype,mode,input_tokens,output_tokens,"
    "concurrency,tp,attention_dp,moe_tp,moe_ep,ttft_ms,tpot_ms\n"
)
ROWS = (
    "dense,made up,llama_3_1_8b,h100_sxm,vllm,0.15.1,,,colocated,256,32,4,1,1,1,1,40,6.5\n"
    "other,made up,llama_3_1_8b,h100_sxm,trtllm,77.1,fp8,,colocated,128,16,4,1,1,1,1,30,4.0\n"
)


@pytest.fixture
def points(tmp_path):
    path = tmp_path / "points.csv"
    path.write_text(HEADER + ROWS)
    return path


@pytest.fixture
def dense(tmp_path):
    path = tmp_path / "dense.csv"
    path.write_text(HEADER + ROWS.splitlines()[0] + "\n")
    return path


def run(*words):
    return runner.invoke(app, ["validate", *map(str, words)])


def test_two_processes_write_the_same_bytes(points):
    command = [sys.executable, "-m", "moesim", "validate", str(points), "--json", "--no-timing"]
    whole = [subprocess.run([*command, "--jobs", n], capture_output=True, check=True).stdout for n in "12"]
    assert whole[0] == whole[1]
    document = json.loads(whole[0])
    assert document["command"] == "validate"
    assert "version 77.1 of trtllm: profile of the family from" in document["rows"][1]["warnings"][0]
    assert document["summary"]["n_predicted"] == 2
    assert {row["id"]: row["tpot"]["ape"] is not None for row in document["rows"]} == {
        "dense": True,
        "other": True,
    }


def test_conditions_decide_the_exit_code(dense):
    assert run(dense, "--require", "tpot_median_ape<9,predicted_fraction>=1").exit_code == 0
    missed = run(dense, "--require", "tpot_median_ape<0.000001")
    assert missed.exit_code == 5
    assert "1 of 1 conditions missed: tpot_median_ape<1e-06 (is 0." in missed.output
    wrong = run(dense, "--require", "tpot_medain_ape<1")
    assert wrong.exit_code == 3
    assert "did you mean 'tpot_median_ape'" in wrong.output


def test_a_page_and_rows_are_left_in_the_folder(dense, tmp_path):
    out = tmp_path / "out"
    assert run(dense, "--out", out).exit_code == 0
    page = (out / "validation.html").read_text()
    assert page.count("<svg") == 3
    assert "llama_3_1_8b" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    kept = json.loads((out / "validation.json").read_text())
    assert kept["summary"]["n"] == 1
    before = (out / "predictions.jsonl").read_bytes()
    assert run(dense, "--out", out).exit_code == 0
    assert (out / "predictions.jsonl").read_bytes() == before


def test_a_bad_file_is_one_error(tmp_path):
    path = tmp_path / "bad.csv"
    path.write_text(HEADER + ROWS.replace("colocated", "both").replace(",4,1,", ",0,1,"))
    result = run(path)
    assert result.exit_code == 3
    assert "bad.csv: 4 problems" in result.output
    assert run(tmp_path / "no.csv").exit_code == 3
    (tmp_path / "empty").mkdir()
    assert "no meta.json" in run(tmp_path / "empty").output


def test_a_launch_command_is_run():
    words = [
        "run",
        "--from",
        "vllm serve Qwen/Qwen3-30B-A3B -tp 2 --no-such 1",
        "--device",
        "h100_sxm",
        "--json",
    ]
    sets = [
        "--set",
        "workload.num_requests=20",
        "--set",
        "serving.band_runs=2",
        "--set",
        "workload.concurrency=4",
    ]
    result = runner.invoke(app, [*words, *sets])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["metrics"]["mean_tpot_s"]["value"] > 0
    assert "flag not understood, ignored: --no-such" in result.stderr
    assert runner.invoke(app, ["run"]).exit_code == 3
    assert runner.invoke(app, words[:3]).exit_code == 3


def test_published_claims_are_written_as_a_page_a_picture_and_rows(tmp_path, monkeypatch):
    claims = [Claim("a", "Paper", "s", 1.0, 1.1, 0.2), Claim("b", "Paper", "s", 1.0, 2.0, 0.2)]
    monkeypatch.setattr("moesim.validate.claims.claims_of", lambda name, **_: claims)
    done = run("network", "--out", tmp_path, "--require-all", "--json")
    assert done.exit_code == 5
    assert "1 of 2 claims of network missed: b" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "validation.html",
        "validation.json",
        "validation.png",
    ]
    assert json.loads((tmp_path / "validation.json").read_text()) == json.loads(done.stdout)
