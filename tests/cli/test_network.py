"""Commands about the network: errors of fits, drawings of clusters, faults and what a run says of them."""

import json

import pytest
from typer.testing import CliRunner

from moesim.cli.app import app

QUICK = [
    *("--set", "routing.generator=zipf", "--set", "routing.num_batches=1", "--set", "bands.samples=2"),
    *("--set", "model=qwen3_30b_a3b", "--set", "dtypes.experts=bf16", "--set", "dtypes.weights=bf16"),
]


def call(*arguments):
    return CliRunner().invoke(app, list(arguments))


def document(*arguments):
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_network_fits_tell_their_held_out_errors():
    found = document("calibrate", "network")
    medians = {(row["family"], row["left_out"]): row["median_ape"] for row in found["summary"]}
    assert medians["nccl", "sizes"] < 0.05
    assert medians["custom all-reduce", "sizes of all datatypes"] < 0.06
    assert medians["normal", "rows"] < 0.09
    assert medians["normal between domains", "one EP size"] < 0.15
    assert medians["low_latency", "rows"] < 0.04
    assert medians["nvlink_one_sided", "rows"] < 0.05
    nccl = [row for row in found["decades"] if row["family"] == "nccl"]
    assert len(nccl) == 2 * 6
    assert all(row["median_ape"] < 0.05 and row["p90_ape"] < 0.18 for row in nccl)


def test_a_missed_threshold_and_an_unknown_device_are_told():
    missed = call("calibrate", "network", "h100_sxm", "--within", "0.001")
    assert missed.exit_code == 5
    unknown = call("calibrate", "network", "abacus")
    assert unknown.exit_code == 3
    assert "h100_sxm" in unknown.output


@pytest.mark.parametrize("name", ["h200_x32", "a100_x256_dragonfly", "l40s_x16_numa", "h100_x64_torus"])
def test_a_cluster_is_drawn_with_its_links(name, tmp_path):
    found = document("profile", "show", name, "--draw", str(tmp_path / "links.png"))
    assert (tmp_path / "links.png").read_bytes().startswith(b"\x89PNG")
    labels = [row["label"] for row in found["links"]]
    assert "NIC, out" in labels
    assert all(row["bytes_per_s"] > 0 for row in found["links"])


def test_a_slow_port_is_named_and_its_cost_told():
    found = call("run", "deepseek_v3_decode_h200x16_two_nodes", *QUICK, "--set", "faults.nic_speed.3=0.25")
    assert found.exit_code == 0, found.output
    assert "node0.nic3.out -> leaf3" in found.output
    assert "every part sound" in found.output
    assert "deepep" in found.output


def test_faults_of_parts_that_do_not_exist_are_told():
    for setting, said in (
        ("faults.nic_speed.99=0.5", "accepted: 0 to 15"),
        ("faults.device_speed.0=2", "accepted"),
        ("network.exchange=carrier_pigeon", "unknown exchange"),
        ("network.all_reduce=carrier_pigeon", "ring"),
    ):
        extra = ["--set", "plan.tp=2", "--set", "plan.attention_dp=8"] if "all_reduce" in setting else []
        result = call("run", "deepseek_v3_decode_h200x16_two_nodes", *QUICK, *extra, "--set", setting)
        assert result.exit_code == 3, (setting, result.output)
        assert said in result.output


def test_a_step_beside_others_says_what_they_cost_and_draws_it(tmp_path):
    found = call(
        "run",
        "deepseek_v3_decode_h200x16_beside_kv",
        *QUICK,
        *("--set", "model.num_hidden_layers=4", "--out", str(tmp_path / "out")),
    )
    assert found.exit_code == 0, found.output
    assert "nobody else on the links" in found.output
    assert "nic" in found.output.partition("Links shared with others")[2]
    assert (tmp_path / "out" / "crowd.png").read_bytes().startswith(b"\x89PNG")
    assert "longer beside the traffic of others" in (tmp_path / "out" / "report.html").read_text()
