import json

import pytest
from typer.testing import CliRunner

from moesim.cli.app import app

SMALL = ["qwen3_30b_serve_h200x2", "--set=workload.num_requests=30", "--set=serving.band_runs=2"]


def call(*args):
    return CliRunner().invoke(app, list(args))


def run_json(*extra):
    result = call("run", *SMALL, "--json", "--no-timing", *extra)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_service_end_to_end(tmp_path):
    result = call("run", *SMALL, "--out", str(tmp_path), "--no-timing", "--format", "vllm")
    assert result.exit_code == 0, result.output
    document = json.loads((tmp_path / "run.json").read_text())
    metrics = document["metrics"]
    assert document["headline"] == "goodput_requests_per_s"
    for name in ("p50_ttft_s", "p99_tpot_s", "mean_itl_s", "p95_e2e_latency_s"):
        assert 0 < metrics[name]["low"] <= metrics[name]["value"] <= metrics[name]["high"]
    assert metrics["output_tokens_per_s_per_device"]["value"] * 2 == pytest.approx(
        metrics["output_tokens_per_s"]["value"]
    )
    exported = json.loads((tmp_path / "vllm.json").read_text())
    assert exported["mean_ttft_ms"] == pytest.approx(1e3 * metrics["mean_ttft_s"]["value"])
    page = (tmp_path / "report.html").read_text()
    for heading in ("Requests", "Over time"):
        assert f"<h3>{heading}</h3>" in page
    for figure in ("latency_curves", "service_over_time", "batches"):
        assert (tmp_path / f"{figure}.png").stat().st_size > 10_000


def test_same_seed_same_bytes_and_exact_beside_memo():
    memo = run_json()
    assert memo == run_json()
    exact = run_json("--set", "serving.step_times=exact")
    for name in ("p50_tpot_s", "p50_ttft_s", "output_tokens_per_s"):
        assert memo["metrics"][name]["value"] == pytest.approx(exact["metrics"][name]["value"], rel=0.03)


def test_pools_and_replicas_and_what_happens_to_them():
    pools = run_json("--set=serving.prefill={instances: 1}", "--set=serving.decode={instances: 2}")
    assert [row["ranks"] for row in pools["memory"]["per_rank"]] == ["0-1", "2-5"]
    changes = "[{at_s: 1, kind: down, instance: 1}, {at_s: 2, kind: add, instance: 2}]"
    hurt = run_json("--set=serving.instances=3", f"--set=serving.changes={changes}")
    assert hurt["metrics"]["retries"]["value"] > 0


@pytest.mark.parametrize(
    ("change", "code", "told"),
    [
        ("workload.input_tokens=3000000", 4, "request 0 can never be admitted: it needs 3,0"),
        ("workload.rate_per_s=-1", 3, "workload.rate_per_s: got -1; accepted: a number > 0"),
        ("engine.max_num_seqs=9000", 3, "accepted: at most max_num_batched_tokens = 8192"),
        ("engine.name=vlm", 3, "did you mean 'vllm'?"),
        ("engine.version=0.10", 3, "a release in quotes"),
        ("plan.num_devices=3", 3, "plan.num_devices: got 3; accepted: 2"),
        ("overlap.policy=two_bach", 3, "did you mean 'two_batch'?"),
        ("workload.kind=poison", 3, "did you mean 'poisson'?"),
        ("serving.instances=9", 4, "the instances need 18 devices, the cluster has 8"),
        ("serving.prefill={instances: 1}", 3, "prefill and decode pools need each other"),
        ("serving.changes=[{at_s: 1, kind: down, instance: 7}]", 3, "accepted: 0 to 0"),
        ("serving.changes=[{at_s: 0.1, kind: down, instance: 0}]", 4, "have no instance left"),
        ("workload.concurrency=4", 3, "absent unless kind is closed_loop"),
        ("plan.ep=3", 3, "plan"),
        ("question=decode_step", 3, "batch is missing"),
    ],
)
def test_wrong_input_is_one_clear_error(change, code, told):
    result = call("run", *SMALL, "--set", change)
    assert result.exit_code == code, result.output
    assert told in result.stderr
    assert "Traceback" not in result.output


def test_an_unknown_version_is_answered_by_the_nearest_with_a_wider_band():
    known, unknown = run_json(), run_json("--set", 'engine.version="9.9"')
    assert any("bands widened" in warning for warning in unknown["warnings"])

    def width(document):
        metric = document["metrics"]["p50_tpot_s"]
        return metric["high"] / metric["low"]

    assert width(unknown) > width(known)
