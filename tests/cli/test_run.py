import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from moesim.cli.app import app

SMALL = [
    "llama_3_1_70b_decode_h100x4",
    "--set=bands.samples=4",
]


def call(*args):
    return CliRunner().invoke(app, list(args))


def test_json_is_one_document_and_nothing_else():
    result = call("run", *SMALL, "--json", "--no-timing")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["schema_version"] == 1
    assert document["command"] == "run"
    assert document["metrics"]["tpot_s"]["unit"] == "s"
    assert "timing" not in document


def test_table_shows_answer_and_band():
    result = call("run", *SMALL)
    assert result.exit_code == 0
    assert "80 % band" in result.stdout
    assert "tpot_s" in result.stdout


def test_two_processes_write_the_same_bytes():
    command = [sys.executable, "-m", "moesim", "run", *SMALL, "--json", "--no-timing"]
    outputs = [
        subprocess.run(
            command, capture_output=True, check=True, env=os.environ | {"PYTHONHASHSEED": s}
        ).stdout
        for s in ("1", "2")
    ]
    assert outputs[0] == outputs[1]


SCENARIO = """\
schema_version: 1
name: small
question: decode_step
model: qwen3_30b_a3b
cluster: h100_x8
plan: {tp: 1, attention_dp: 4, ep: 4}
routing: {generator: uniform, num_batches: 1}
batch: {tokens_per_rank: 8, context_tokens: 128}
bands: {samples: 4}
"""


@pytest.fixture
def scenario(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(SCENARIO)
    return path


@pytest.mark.parametrize(
    ("before", "after", "code", "said"),
    [
        ("tokens_per_rank", "tokens_per_rnk", 3, "did you mean 'tokens_per_rank'"),
        ("name: small", "name: small\nname: twice", 3, "small.yaml:3"),
        ("ep: 4}", "ep: 3}", 3, "accepted: 1, 2, 4"),
        ("model: qwen3_30b_a3b", "model: qwen3_30b", 3, "qwen3_30b_a3b"),
        ("cluster: h100_x8", "cluster: h100_x9", 3, "h100_x8"),
        ("generator: uniform", "generator: unifrom", 3, "did you mean 'uniform'"),
        ("context_tokens: 128", "context_tokens: -1", 3, "small.yaml:8"),
        ("question: decode_step", "question: decode", 3, "decode_step"),
        ("context_tokens: 128", "context_tokens: 300000", 4, "fits with one of"),
        ("name: small", "name: !!python/object/apply:os.system ['true']", 3, "small.yaml:2"),
    ],
)
def test_bad_input_is_one_clear_error(scenario, tmp_path, before, after, code, said):
    assert before in SCENARIO
    scenario.write_text(SCENARIO.replace(before, after, 1))
    out = tmp_path / "out"
    result = call("run", str(scenario), "--out", str(out))
    assert result.exit_code == code, result.output
    assert said in result.stderr
    assert result.stdout == ""
    assert not out.exists()
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("override", "code", "said"),
    [
        ("cluster.node.nic.bandwidth_bytes_per_s=-1", 3, "accepted: a number > 0"),
        ("cluster.node.device.memory.hbm.bandwith_bytes_per_s=1", 3, "bandwidth_bytes_per_s"),
        ("model.num_expert=4", 3, "unknown field"),
        ("plan.tp=3", 3, "plan.tp"),
        ("plan", 3, "dotted.path=value"),
        ("overlap.policy=two_batches", 3, "two_batch"),
        ("dtypes.weights=bf61", 3, "bf16"),
        ("plan.num_devices=5", 3, "plan.num_devices"),
    ],
)
def test_bad_overrides(scenario, override, code, said):
    result = call("run", str(scenario), "--set", override)
    assert result.exit_code == code, result.output
    assert said in result.stderr


def test_all_problems_at_once(scenario):
    scenario.write_text(
        SCENARIO.replace("context_tokens", "contxt_tokens").replace("samples: 4", "samples: many")
    )
    result = call("run", str(scenario))
    assert "2 problems" in result.stderr


def test_dry_run_shows_where_each_value_was_set(scenario):
    result = call("run", str(scenario), "--dry-run", "--set", "seed=3")
    assert result.exit_code == 0
    assert "--set" in result.stdout
    assert "small.yaml:8" in result.stdout


def test_whatif_reports_points_that_do_not_run(scenario):
    result = call("whatif", str(scenario), "--vary", "plan.ep=4,3", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["rows"][0]["change_fraction"] == pytest.approx(0.0)
    assert "accepted" in document["rows"][1]["error"]


def test_explain_tells_value_origin_and_source(scenario):
    path = "cluster.node.device.memory.hbm.bandwidth_bytes_per_s"
    result = call("explain", path, "--scenario", str(scenario), "--json")
    (row,) = json.loads(result.stdout)["rows"]
    assert row["grade"] == "datasheet"
    assert row["set_at"].startswith("h100_sxm.yaml:")
    changed = call("explain", path, "--scenario", str(scenario), "--set", f"{path}=1e12", "--json")
    (row,) = json.loads(changed.stdout)["rows"]
    assert row["value"] == 1e12
    assert row["set_at"] == "--set"


def test_policies_lists_kinds_and_parameters():
    document = json.loads(call("policies", "--json").stdout)
    names = {(row["kind"], row["name"]) for row in document["rows"]}
    assert {("overlap", "two_batch"), ("placement", "ilp"), ("generator", "fitted_skew")} <= names
    assert call("policies", "nothing").exit_code == 3


def test_every_command_has_help():
    from moesim.cli.app import COMMANDS

    for name in COMMANDS:
        result = call(name, "--help")
        assert result.exit_code == 0, (name, result.output)
        assert "Usage" in result.output
