"""``moesim placement``: replicas, rebalancing, splits."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from moesim.cli.app import app
from moesim.evidence import rng_for
from moesim.traces import write_trace
from moesim.traces.generators import generators

SCENARIO = """
schema_version: 1
name: small
question: decode_step
model: mixtral_8x7b
cluster: h100_x8
plan: {tp: 1, attention_dp: 8, ep: 8}
routing: {generator: lognormal, num_batches: 1}
batch: {tokens_per_rank: 8, context_tokens: 2048}
bands: {samples: 2}
"""


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    made = generators.build("fitted_skew").generate(2000, 3, 16, 2, rng_for(0, "test"))
    return str(write_trace(tmp_path_factory.mktemp("traces") / "t.safetensors", made))


@pytest.fixture
def scenario(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(SCENARIO)
    return str(path)


def run(*args):
    return CliRunner().invoke(app, ["placement", *map(str, args)])


def rows(done, key):
    assert done.exit_code == 0, done.output
    return {row[key]: row for row in json.loads(done.stdout)["rows"]}


def test_replicas_take_memory_from_the_cache(scenario):
    done = run("replicas", scenario, "--redundant", "0,8,16,800", "--json")
    found = rows(done, "redundant_experts")
    assert found[0]["kv_blocks"] > found[8]["kv_blocks"] > found[16]["kv_blocks"] > 0
    assert found[0]["expert_bytes"] < found[8]["expert_bytes"]
    assert found[800]["output_tokens_per_s"] is None
    best = json.loads(done.stdout)["metrics"]["best_output_tokens_per_s"]["value"]
    assert best == max(
        row["output_tokens_per_s"]["value"] for row in found.values() if row["output_tokens_per_s"]
    )


def test_limits_of_concurrency(scenario):
    few = rows(run("replicas", scenario, "--redundant", 8, "--max-sequences", 5, "--json"), "sequences")
    assert list(few) == [5]
    assert few[5]["limited_by"] == "request"
    fast = rows(run("replicas", scenario, "--redundant", 8, "--max-tpot-ms", 20, "--json"), "limited_by")
    assert fast["latency"]["tpot_s"]["value"] <= 0.02


def test_rebalancing_moves_more_the_more_often(trace):
    done = run(
        "rebalance", trace, "--ranks", 4, "--redundant", 4, "--every", "2,8", "--batch-tokens", 64, "--json"
    )
    found = rows(done, "every")
    assert list(found) == [0, 2, 8]
    assert found[0]["moved_experts"] == 0
    assert found[2]["moved_experts"] > found[8]["moved_experts"] > 0
    assert all(row["imbalance_ratio"] >= 1 for row in found.values())


def test_splits_are_told_apart(trace):
    done = run("splits", trace, "--ranks", 4, "--redundant", 4, "--ranks-per-node", 2, "--json")
    found = rows(done, "policy")
    assert found["lplb"]["imbalance_ratio"] <= found["even"]["imbalance_ratio"] + 0.01
    assert found["same_node_first"]["cross_node_sends"] <= found["even"]["cross_node_sends"]
    assert all(np.isfinite(row["imbalance_ratio_p95"]) for row in found.values())


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["replicas", "gpt_oss_20b_decode_h100x8", "--redundant", "a"], "whole numbers and commas"),
        (["replicas", "gpt_oss_20b_decode_h100x8", "--redundant", "3"], "does not divide"),
        (["rebalance", "TRACE", "--ranks", 4, "--every", "0"], "whole numbers >= 1"),
        (["rebalance", "TRACE", "--ranks", 4, "--window", 900], "window"),
        (["rebalance", "TRACE", "--ranks", 4, "--batch-tokens", 1900], "at most half"),
        (["rebalance", "TRACE", "--ranks", 4, "--window", 2, "--method", "affinity"], "missing"),
        (["splits", "TRACE", "--ranks", 4, "--policy", "evenn"], "did you mean 'even'"),
        (["splits", "TRACE", "--ranks", 4, "--param", "a=1"], "goes with one --policy"),
    ],
)
def test_mistakes(trace, args, text):
    done = run(*(trace if part == "TRACE" else part for part in args))
    assert done.exit_code == 3, done.output
    assert text in done.stderr
