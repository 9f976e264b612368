"""``moesim train``: documents, tables, exit codes of the calculators."""

import json

import pytest
from typer.testing import CliRunner

from moesim.cli.app import app


@pytest.fixture
def run():
    runner = CliRunner()
    return lambda *args: runner.invoke(app, ["train", *args])


def values(result):
    assert result.exit_code == 0, result.output
    return {name: metric["value"] for name, metric in json.loads(result.stdout)["metrics"].items()}


# NVIDIA-NeMo/Megatron-Bridge, docs/performance-summary.md: TFLOP/s over tokens/s of the same row
BRIDGE = {
    ("deepseek_v3", 4096): 0.2497e12,
    ("qwen3_235b_a22b", 4096): 0.148e12,
    ("qwen3_30b_a3b", 4096): 0.0231e12,
    ("llama_3_1_8b", 8192): 0.0515e12,
    ("llama_3_1_70b", 8192): 0.449e12,
}


@pytest.mark.parametrize(("model", "sequence"), BRIDGE)
def test_flops_agree_with_megatron_bridge(run, model, sequence):
    found = values(run("flops", model, "--sequence", str(sequence), "--json"))
    assert found["train_flops_per_token"] == pytest.approx(BRIDGE[model, sequence], rel=0.005)
    assert found["sequence_flops"] == sequence * found["train_flops_per_token"]


def test_mfu_of_a_published_run(run):
    args = ("--tokens-per-s", "1543", "--device", "h800_sxm")
    found = values(run("flops", "deepseek_v3", *args, "--json"))
    assert found["mfu_fraction"] == pytest.approx(0.39, abs=0.005)
    assert "mfu_fraction" in run("flops", "deepseek_v3", *args).stdout


def test_prediction_modules_cost_work(run):
    plain, more = (values(run("flops", "deepseek_v3", *flag, "--json")) for flag in ((), ("--mtp",)))
    assert more["train_flops_per_token"] == pytest.approx(0.2601e12, rel=0.005)
    assert more["train_flops_per_token"] > plain["train_flops_per_token"]


def test_leverage_of_the_headline_and_of_a_model(run):
    assert values(run("leverage", "--json"))["leverage_ratio"] == pytest.approx(7.24, abs=0.005)
    found = values(run("leverage", "--model", "deepseek_v3", "--tokens", "14.8e12", "--json"))
    assert found["activation_fraction"] == pytest.approx(9 / 257)
    assert found["granularity"] == 7
    assert found["compute_flops"] == pytest.approx(14.8e12 * 0.2497e12 / 3, rel=0.005)


def test_cost_of_deepseek_v3(run):
    result = run("cost", "--stage", "deepseek_v3:1e12", "--device", "h800_sxm:0.39:2", "--json")
    document = json.loads(result.stdout)
    row = document["rows"][0]
    assert row["device_hours"] == pytest.approx(180e3, rel=0.01)
    assert row["cost"] == pytest.approx(2 * row["device_hours"])


def test_stages_add_up_in_a_table(run):
    stages = ("--stage", "llama_3_1_8b:1e12", "--stage", "mixtral_8x7b:2e11")
    text = run("cost", *stages, "--device", "h100_sxm:0.4:2", "--device", "a100_sxm_80:0.5:1").stdout
    assert "mixtral_8x7b" in text
    assert "a100_sxm_80" in text


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("leverage", "--model", "llama_3_1_8b"), "a model with experts"),
        (("cost", "--stage", "deepseek_v3", "--device", "h100_sxm:0.4"), "MODEL:TOKENS"),
        (("cost", "--stage", "deepseek_v3:many", "--device", "h100_sxm:0.4"), "a number"),
        (("cost", "--stage", "deepseek_v3:1e12", "--device", "h100_sxm"), "PROFILE:MFU"),
        (("cost", "--stage", "deepseek_v3:1e12", "--device", "h100_sxm:1.5"), "at most 1"),
        (("flops", "deepseek_v33"), "deepseek_v3"),
    ],
)
def test_wrong_input_says_what_is_accepted(run, args, words):
    result = run(*args)
    assert result.exit_code == 3
    assert words in result.output


def test_memory_of_a_plan_that_fits(run):
    args = ("memory", "qwen3_30b_a3b", "--dp", "16", "--ep", "16", "--gradients", "bf16")
    document = json.loads(run(*args, "--json").stdout)
    row = document["rows"][0]
    assert row["need_bytes"] == pytest.approx(sum(row["parts"].values()))
    assert document["metrics"]["peak_bytes"]["value"] < document["metrics"]["capacity_bytes"]["value"]
    assert "expert activations" in run(*args).stdout


def test_memory_of_a_plan_that_does_not_fit(run):
    result = run("memory", "qwen3_30b_a3b", "--dp", "16", "--ep", "16", "--micro-batch", "2")
    assert result.exit_code == 4
    assert "micro_batch_size=1" in result.output
    assert "plan.pp=2" in result.output


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--ep", "3", "--dp", "3"), "a divisor of 128 (experts)"),
        (("--sharding", "zero4"), "did you mean 'zero"),
        (("--recompute", "moe_acts"), "did you mean 'moe_act'"),
        (("--schedule", "1f2b"), "1f1b"),
        (("--pp", "4", "--vpp", "2", "--microbatches", "3"), "--schedule"),
    ],
)
def test_wrong_plans_say_what_is_accepted(run, args, words):
    result = run("memory", "qwen3_30b_a3b", *args)
    assert result.exit_code == 3
    assert words in result.output
