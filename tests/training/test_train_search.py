"""The search over a scenario's plans: each is timed as a run of it would be, and bounded from below."""

import json
from copy import deepcopy
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from moesim.cli.app import app
from moesim.errors import InputError
from moesim.files import Tree
from moesim.metrics.breakdown import Share
from moesim.parallel.train_plan import TrainPlan
from moesim.report.layouts_page import write_layouts_page
from moesim.scenario.resolve import resolve_tree
from moesim.scenario.train_layouts import EXCHANGE, group_of
from moesim.scenario.train_search import (
    ScenarioEstimator,
    assignments,
    common_of,
    default_space,
    own_candidate,
    search_plans,
)
from moesim.scenario.training import build_training
from moesim.training.overlaps.base import LENT
from moesim.training.recompute import Recompute
from moesim.training.step import TrainStep
from moesim.training.tuning import Candidate, Space

TREE = {
    "schema_version": 1,
    "name": "small",
    "question": "train_step",
    "model": {"name": "qwen3_30b_a3b", "num_hidden_layers": 8},
    "cluster": "h100_x16",
    "plan": {"ep": 8, "pp": 2, "vpp": 2},
    "routing": {"generator": "fitted_skew", "num_batches": 2},
    "training": {"global_batch_size": 32, "schedule": {"policy": "interleaved"}},
}
FULL = Recompute("full")
CANDIDATES = [
    Candidate(TrainPlan(ep=8, dp=8, pp=2, vpp=2), 1, 4, "interleaved", Recompute()),
    Candidate(TrainPlan(ep=8, dp=8, pp=2), 1, 4, "1f1b", FULL),
    Candidate(TrainPlan(ep=4, dp=4, pp=4), 1, 8, "zb1p", FULL),
    Candidate(TrainPlan(ep=4, tp=2, dp=2, pp=4, vpp=2), 2, 8, "interleaved_pairs", Recompute()),
    Candidate(TrainPlan(ep=8, dp=8, pp=2, vpp=2), 1, 4, "dualpipe", FULL),
    Candidate(TrainPlan(ep=4, dp=4, pp=4, vpp=2), 1, 8, "zb_v", Recompute("full", method="block")),
]


@pytest.fixture(scope="module")
def resolved():
    return resolve_tree(Tree(deepcopy(TREE), source="test"))


@pytest.fixture(scope="module")
def estimator(resolved):
    return ScenarioEstimator(resolved.scenario, common_of(resolved))


@pytest.mark.parametrize("candidate", CANDIDATES, ids=lambda c: c.schedule)
def test_a_candidate_takes_what_its_run_would(resolved, estimator, candidate):
    """Work that plans share changes nothing: asked for together or built anew, the numbers are equal."""
    sets = assignments(candidate, resolved.scenario)
    if candidate.recompute.method == "block":
        sets.append("training.recompute_layers=1")
    built = build_training(resolve_tree(Tree(deepcopy(TREE), source="test"), sets))
    seconds = estimator.seconds(candidate)
    assert seconds == float(TrainStep(built.setup).run().makespan_s[0])
    assert estimator.peak_bytes(candidate) == float(built.ledger.need_bytes.max())
    assert own_candidate(built.scenario) == candidate
    assert 0.5 * seconds < estimator.least_seconds(candidate) <= seconds


def test_fastest_of_a_space_fits_and_nothing_in_it_is_faster(resolved, estimator):
    space = Space(16, 32, tp=(1, 2), pp=(1, 2), vpp=(1, 2), ep=(8, 16), micro_batch=(1,))
    found = search_plans(resolved.scenario, estimator.common, space, keep=2)
    everything = search_plans(resolved.scenario, estimator.common, space, keep=1000)
    assert [one.seconds for one in found.best] == [one.seconds for one in everything.best[:2]]
    assert everything.num_timed >= found.num_timed
    capacity = resolved.scenario.cluster.node.device.main_memory.capacity_bytes
    assert all(one.peak_bytes <= capacity for one in everything.best)


def test_default_space_holds_what_the_scenario_asks_for(resolved, estimator):
    odd = resolve_tree(Tree(deepcopy(TREE), source="test"), ["plan.pp=6", "plan.num_devices=96"])
    space = default_space(odd.scenario, estimator.common)
    assert 6 in space.pp
    assert {"1f1b", "interleaved"} <= set(space.schedules)
    own = own_candidate(resolved.scenario)
    assert own.recompute in default_space(resolved.scenario, estimator.common).recompute


def test_only_training_has_such_plans(resolved):
    serving = replace(resolved, scenario=resolved.scenario.model_copy(update={"question": "decode_step"}))
    with pytest.raises(InputError, match="question: got 'decode_step'; accepted: train_step"):
        common_of(serving)


def test_command_tells_the_best_and_why_others_are_out(tmp_path):
    file = tmp_path / "small.json"
    file.write_text(json.dumps(TREE | {"routing": {"generator": "balanced"}}))
    options = "--tp 1,3 --ep 8 --pp 1,2 --vpp 1,2 --micro-batch 1 --recompute none --recompute full --jobs 1"
    call = ["train", "search", str(file), *options.split()]
    result = CliRunner().invoke(app, [*call, "--json"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    best = document["rows"][0]
    assert document["metrics"]["step_s"]["value"] == best["step_s"] <= document["own"]["step_s"]
    assert document["counts"]["plans"] == 16
    assert sum(document["left_out"].values()) + document["counts"]["timed"] == 16
    shown = CliRunner().invoke(app, call).stdout
    assert "as the scenario has it" in shown
    assert "tp * cp * pp does not divide the devices" in shown
    assert f"--set plan.pp={best['pp']}" in shown


@pytest.mark.parametrize("option", [["--tp", "two"], ["--ep", "0"], ["--recompute", "moe_akt"]])
def test_command_refuses_what_is_no_value(tmp_path, option):
    file = tmp_path / "small.json"
    file.write_text(json.dumps(TREE | {"routing": {"generator": "balanced"}}))
    result = CliRunner().invoke(app, ["train", "search", str(file), *option])
    assert result.exit_code == 3
    assert "accepted" in result.output


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    (folder / "small.json").write_text(json.dumps(TREE | {"description": "<small>"}))
    options = "--tp 1,2 --ep 4,8 --pp 2 --vpp 2 --micro-batch 1 --jobs 1"
    call = ["train", "search", str(folder / "small.json"), *options.split(), "--out", str(folder / "out")]
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 0, result.output
    assert CliRunner().invoke(app, call).exit_code == 3  # nothing is overwritten unasked
    return json.loads((folder / "out" / "search.json").read_text()), folder / "out"


def test_layouts_are_made_of_their_parts_and_what_imbalance_adds(compared):
    rows = compared[0]["layouts"]["rows"]
    assert [row["step_s"] for row in rows] == sorted(row["step_s"] for row in rows)
    for row in rows:
        assert sum(row["groups"].values()) == pytest.approx(row["step_s"], rel=1e-6)
        assert row["groups"]["uneven experts"] == pytest.approx(row["step_s"] - row["balanced_step_s"])
        assert row["groups"]["uneven experts"] > 0
        assert sum(row["memory"].values()) == pytest.approx(row["peak_bytes"])
    notes = " ".join(row["note"] for row in rows)
    assert all(text in notes for text in ("fastest", "EP4", "EP8", "as the scenario has it"))


def test_layouts_page_is_whole_escaped_and_repeatable(compared, tmp_path):
    document, folder = compared
    page = (folder / "layouts.html").read_text()
    assert write_layouts_page(document, tmp_path / "again.html").read_text() == page
    assert "&lt;small&gt;" in page
    assert "<small>" not in page
    assert page.count("<svg") == 2
    assert {file.name for file in folder.glob("*.png")} == {"layouts.png", "layout_memory.png"}


def test_what_work_lends_to_exchanges_counts_as_theirs():
    assert group_of(Share(LENT, "compute", 1.0, 0.1, "fitted", 0.1)) == EXCHANGE
