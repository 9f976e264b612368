import json

import numpy as np
import pytest
from typer.testing import CliRunner

from moesim.cli.app import app
from moesim.evidence import rng_for
from moesim.placement import placement_methods
from moesim.placement.store import read_placement
from moesim.traces import write_trace
from moesim.traces.generators import generators


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    made = generators.build("fitted_skew").generate(2000, 3, 16, 2, rng_for(0, "test"))
    return str(write_trace(tmp_path_factory.mktemp("traces") / "t.safetensors", made))


def place(*args):
    return CliRunner().invoke(app, ["place", *map(str, args)])


def test_json_keeps_the_contract(trace):
    done = place(trace, "--ranks", 4, "--redundant", 4, "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert (document["command"], document["schema_version"], document["method"]) == ("place", 1, "ilp")
    value = {name: metric["value"] for name, metric in document["metrics"].items()}
    assert value["objective"] >= value["lower_bound"] * (1 - 1e-9)
    assert value["gap_fraction"] == pytest.approx(value["objective"] / value["lower_bound"] - 1, abs=1e-9)
    assert 1 <= value["imbalance_ratio_fit_after"] <= value["imbalance_ratio_fit_before"]
    assert value["imbalance_ratio_held_out_after"] <= value["imbalance_ratio_held_out_before"]
    assert value["moved_experts"] > 0
    assert document["timing"]["solve_s"] >= 0
    assert [layer["layer"] for layer in document["layers"]] == [0, 1, 2]
    assert sum(layer["objective"] for layer in document["layers"]) == pytest.approx(value["objective"])


def test_same_bytes_without_timing(trace):
    methods = [part for name in ("ilp", "affinity", "annealing") for part in ("--method", name)]
    one, two = (place(trace, "--ranks", 4, *methods, "--json", "--no-timing").stdout for _ in range(2))
    assert one == two
    assert "timing" not in json.loads(one)


def test_all_methods_share_one_bound(trace):
    document = json.loads(place(trace, "--ranks", 4, "--method", "all", "--json").stdout)
    by_name = {one["method"]: one for one in document["methods"]}
    assert sorted(by_name) == placement_methods.names()
    assert by_name["ilp"]["objective"] <= by_name["eplb_swaps"]["objective"] <= by_name["eplb"]["objective"]
    assert all(one["gap_fraction"] >= 0 for one in by_name.values())
    assert by_name["linear"]["moved_experts"] == 0
    assert document["metrics"]["objective"]["value"] == by_name[document["method"]]["objective"]


def test_tables_for_people(trace):
    done = place(trace, "--ranks", 4, "--method", "greedy", "--method", "eplb")
    assert done.exit_code == 0
    assert "3 layers of 16 experts on 4 ranks with 4 slots" in done.stdout
    assert "greedy" in done.stdout
    assert "farthest from their bound" in done.stdout
    assert "--out" in done.stderr


def test_out_is_written_once(trace, tmp_path):
    out = tmp_path / "p.json"
    assert place(trace, "--ranks", 4, "--out", out, "--method", "eplb").exit_code == 0
    stored = read_placement(out)
    assert (stored.method, stored.layer_indices, stored.placement.num_ranks) == ("eplb", (0, 1, 2), 4)
    again = place(trace, "--ranks", 4, "--out", out)
    assert again.exit_code == 3
    assert "--force" in again.stderr
    assert read_placement(out) == stored
    assert place(trace, "--ranks", 2, "--method", "greedy", "--out", out, "--force").exit_code == 0
    assert read_placement(out).placement.num_ranks == 2


@pytest.mark.parametrize("name", ["sglang", "vllm", "trtllm", "vllm-ascend"])
def test_engine_formats(trace, tmp_path, name):
    out = tmp_path / "file"
    done = place(trace, "--ranks", 4, "--method", "eplb", "--out", out, "--format", name, "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["command"] == "place"
    assert out.read_text()
    assert f"({name})" in done.stderr


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["--ranks", 4, "--slots", 3], "accepted: at least 4"),
        (["--ranks", 4, "--slots", 17], "accepted: at most the 16 experts"),
        (["--ranks", 4, "--redundant", 3], "nearest accepted: 0, 4"),
        (["--ranks", 4, "--slots", 5, "--redundant", 4], "one of them"),
        (["--ranks", 4, "--ranks-per-node", 3], "a divisor of the 4 ranks"),
        (["--ranks", 4, "--groups", 5], "a divisor of the 16 experts"),
        (["--ranks", 4, "--method", "eplbb"], "did you mean 'eplb'"),
        (["--ranks", 4, "--param", "colour=red"], "colour"),
        (["--ranks", 4, "--param", "gap_fraction"], "NAME=VALUE"),
        (["--ranks", 4, "--method", "all", "--param", "x=1"], "goes with one --method"),
        (["--ranks", 4, "--fit-fraction", 1], "fit_fraction"),
        (["--ranks", 4, "--format", "csv"], "moesim, omni, sglang"),
    ],
)
def test_mistakes(trace, args, text):
    done = place(trace, *args)
    assert done.exit_code == 3, done.output
    assert text in done.stderr
    assert not done.stdout


def test_parameters_reach_the_method(trace):
    done = place(trace, "--ranks", 4, "--redundant", 4, "--param", "split=solved", "--json")
    assert json.loads(done.stdout)["methods"][0]["split"] == "solved"


def test_ranks_that_leave_slots_over(trace):
    document = json.loads(place(trace, "--ranks", 3, "--json").stdout)
    assert document["problem"]["slots_per_rank"] == 6
    assert document["problem"]["redundant_experts"] == 2


def test_a_file_is_scored_beside_the_methods(trace, tmp_path):
    for name in ("moesim", "sglang", "trtllm", "vllm-ascend", "omni"):
        out = tmp_path / name
        form = ["--format", name]
        written = place(trace, "--ranks", 4, "--redundant", 4, "--method", "greedy", "--out", out, *form)
        assert written.exit_code == 0, written.output
        options = ["--redundant", 4, "--method", "greedy", "--score", out, *form, "--json"]
        document = json.loads(place(trace, "--ranks", 4, *options).stdout)
        greedy, scored = document["methods"]
        assert (greedy["method"], scored["method"]) == ("greedy", "file")
        assert scored["objective"] == pytest.approx(greedy["objective"])
        assert scored["imbalance_ratio_batch"] == pytest.approx(greedy["imbalance_ratio_batch"])
        # alone, the file's own slots are what the bound is about
        (alone,) = json.loads(place(trace, "--ranks", 4, *options[4:]).stdout)["methods"]
        assert alone["gap_fraction"] == pytest.approx(greedy["gap_fraction"])


def test_what_moves_is_counted_from_the_present_placement(trace, tmp_path):
    now = tmp_path / "now.json"
    place(trace, "--ranks", 4, "--method", "eplb", "--out", now)
    options = ["--present", now, "--method", "eplb", "--method", "migration_ilp", "--json"]
    eplb, limited = json.loads(place(trace, "--ranks", 4, *options).stdout)["methods"]
    assert eplb["moved_experts"] == 0
    assert limited["objective"] <= eplb["objective"]


def test_ranks_may_differ(trace):
    options = ["--rank-slots", "6,6,2,2", "--speeds", "2,2,1,1", "--method", "speed_ilp", "--json"]
    document = json.loads(place(trace, "--ranks", 4, *options).stdout)
    assert document["metrics"]["gap_fraction"]["value"] < 0.05
    even = json.loads(
        place(trace, "--ranks", 4, "--rank-slots", "6,6,2,2", "--method", "greedy", "--json").stdout
    )
    # the last two ranks hold 2 of 16 experts each: they cannot carry a quarter of the tokens
    assert even["metrics"]["imbalance_ratio_fit_after"]["value"] > 1.05


def test_hosts_draw_hot_experts(trace):
    options = ["--ranks-per-node", 2, "--hosts", "1,1,0,0", "--method", "topology_ilp", "--json"]
    (one,) = json.loads(place(trace, "--ranks", 4, *options).stdout)["methods"]
    own = one["own_objective"]
    assert own["bound"] <= own["value"] < 1.25  # 0.5 on the near node, 2 on the far one
    assert own["gap_fraction"] < 0.01


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["--rank-slots", "6,6,2"], "3 numbers; accepted: 4"),
        (["--rank-slots", "6,6,1,1"], "at least the 16 experts"),
        (["--rank-slots", "6,6,2,2", "--slots", "4"], "say the same"),
        (["--rank-slots", "6,6,2,2", "--method", "eplb"], "needs as many on every rank"),
        (["--speeds", "1,1,0,1"], "speeds[2]"),
        (["--speeds", "a,1,1,1"], "numbers and commas"),
        (["--hosts", "0,0,0,0"], "not all 0"),
        (["--fit-domain", "law"], "domain"),
        (["--score", "nowhere.json"], "nowhere.json"),
        (["--scenario", "mixtral_8x7b_decode_a100x4_tp"], "num_experts"),
    ],
)
def test_more_mistakes(trace, args, text):
    done = place(trace, "--ranks", 4, *args)
    assert done.exit_code == 3, done.output
    assert text in done.stderr
    assert not done.stdout


def test_a_trace_of_another_model_and_a_file_of_another_shape(trace, tmp_path):
    other = generators.build("fitted_skew").generate(2000, 3, 8, 2, rng_for(0, "other"))
    path = write_trace(tmp_path / "other.safetensors", other)
    done = place(trace, "--ranks", 4, "--judge-on", path)
    assert done.exit_code == 3
    assert "num_experts" in done.stderr
    out = tmp_path / "p.json"
    assert place(path, "--ranks", 2, "--method", "eplb", "--out", out).exit_code == 0
    done = place(trace, "--ranks", 4, "--score", out)
    assert done.exit_code == 3
    assert "num_ranks: got 2; accepted: 4" in done.stderr


def test_slots_dealt_out_anew_have_a_bound_of_their_own(tmp_path):
    # one layer of a single hot expert, one that is even: all replicas are worth most in the first
    rng = np.random.default_rng(0)
    ids = np.stack(
        [np.where(rng.random(900) < 0.6, 0, rng.integers(0, 8, 900)), rng.integers(0, 8, 900)], axis=1
    )
    arrays = {"expert_ids": ids[:, :, None], "seq_lens": np.full(9, 100)}
    np.savez(tmp_path / "t.npz", **arrays)
    convert = ["trace", "convert", str(tmp_path / "t.npz"), str(tmp_path / "t.safetensors"), "--from", "npz"]
    assert CliRunner().invoke(app, [*convert, "--experts", "8"]).exit_code == 0
    out = tmp_path / "p.json"
    options = ["--ranks", 4, "--slots", 3, "--method", "replica_ilp", "--out", out, "--json"]
    done = place(tmp_path / "t.safetensors", *options)
    document = json.loads(done.stdout)
    (one,) = document["methods"]
    assert one["gap_fraction"] >= 0
    assert all(layer["gap_fraction"] >= 0 for layer in document["layers"])
    slots = read_placement(out).placement.rank_slots
    assert (slots[0] > slots[1]).all()
    assert slots.sum() == 2 * 4 * 3
