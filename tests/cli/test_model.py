"""``moesim model``: documents, tables, exit codes."""

import json

import pytest
from typer.testing import CliRunner

from moesim.cli.app import app
from moesim.model import bundled_names


@pytest.fixture
def run():
    runner = CliRunner()
    return lambda *args: runner.invoke(app, ["model", *args])


def test_list_names_every_bundled_model(run):
    result = run("list", "--json")
    assert result.exit_code == 0
    rows = json.loads(result.stdout)["rows"]
    assert [row["name"] for row in rows] == bundled_names()
    assert run("list").stdout.count("\n") == len(rows) + 2


def test_show_gives_counts_and_bytes(run):
    document = json.loads(run("show", "qwen3_30b_a3b", "--json").stdout)
    metrics = {name: metric["value"] for name, metric in document["metrics"].items()}
    assert metrics["total_parameters"] == pytest.approx(30.53e9, rel=1e-3)
    assert metrics["active_parameters"] == pytest.approx(3.35e9, rel=1e-3)
    assert metrics["kv_bytes_per_token"] == 48 * 2 * 4 * 128 * 2
    assert metrics["expert_bytes"] == 3 * 2048 * 768 * 2
    assert document["published"]["total"]["agrees"]
    assert [row["num_layers"] for row in document["rows"]] == [48]


def test_formats_change_bytes_only(run):
    plain = json.loads(run("show", "deepseek_v3", "--json").stdout)["metrics"]
    args = ("--dtype", "fp8_block", "--dtype", "experts=nvfp4", "--dtype", "kv=fp8")
    packed = json.loads(run("show", "deepseek_v3", *args, "--json").stdout)["metrics"]
    assert packed["total_parameters"] == plain["total_parameters"]
    assert packed["kv_bytes_per_token"]["value"] * 2 == plain["kv_bytes_per_token"]["value"]
    assert packed["expert_bytes"]["value"] == plain["expert_bytes"]["value"] * 4.5 / 16


def test_show_takes_other_values_and_variants(run):
    plain = json.loads(run("show", "qwen3_30b_a3b", "--json").stdout)
    args = ("--set", "num_experts_per_tok=4", "--set", "variant.kept_width=0.5")
    changed = json.loads(run("show", "qwen3_30b_a3b", *args, "--json").stdout)
    assert changed["metrics"]["expert_bytes"]["value"] == plain["metrics"]["expert_bytes"]["value"] / 2
    assert changed["rows"][0]["kind"] == "gqa + moe 4/128"
    assert "published" not in changed
    wrong = run("show", "qwen3_30b_a3b", "--set", "num_expert=4")
    assert wrong.exit_code == 3
    assert "num_expert: unknown field; did you mean 'num_experts'?" in wrong.stderr


def test_show_prints_tables(run):
    text = run("show", "Qwen3-Next-80B-A3B").stdout
    assert "gated_delta_net + moe 10/512" in text
    assert "published total: 80.0 B (all), agrees" in text


def test_a_config_file_is_read_by_path(run, tmp_path):
    fields = {
        "model_type": "mixtral",
        "hidden_size": 64,
        "vocab_size": 100,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 32,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    }
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(fields))
    document = json.loads(run("show", str(folder), "--json").stdout)
    assert document["name"] == "tiny"
    assert "published" not in document
    attention, experts = 64 * (4 + 2 * 2) * 16 + 64 * 64, 4 * 3 * 64 * 32
    layer = attention + experts + 64 * 4 + 2 * 64
    assert document["metrics"]["total_parameters"]["value"] == 2 * layer + 2 * 64 * 100 + 64


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("show", "mixtral_8x7c"), "did you mean 'mixtral_8x7b'"),
        (("show", "mixtral_8x7b", "--dtype", "fp9"), "accepted: one of fp32"),
        (("show", "mixtral_8x7b", "--dtype", "router=fp8"), "a part of weights, experts"),
    ],
)
def test_mistakes_are_told(run, args, said):
    result = run(*args)
    assert result.exit_code == 3
    assert said in result.stderr
    assert result.stdout == ""
