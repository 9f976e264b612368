"""Every shipped scenario loads, runs, agrees with itself; both interpreters give the same picoseconds."""

import json
from pathlib import Path

import numpy as np
import pytest

from moesim.engine import events, vector
from moesim.engine.critical_path import critical_path
from moesim.engine.durations import durations_ps
from moesim.files import listed
from moesim.scenario.background import alone
from moesim.scenario.build import routed_lanes
from moesim.scenario.resolve import resolve
from moesim.scenario.run import run
from moesim.steps.program import step_program

ROOT = Path(__file__).resolve().parents[2]
QUICK = ["routing.num_batches=1", "bands.samples=16"]
MOST_REQUESTS, MOST_TOKENS = 60, 64
AS_SHIPPED = {name: resolve(name).scenario for name in listed("scenarios", suffixes=(".yaml",))}
OF_A_STEP = [n for n, s in AS_SHIPPED.items() if s.question in {"decode_step", "prefill_step"}]
SCENARIOS = OF_A_STEP + [n for n in AS_SHIPPED if n not in OF_A_STEP]  # pytest joins parameters by position


def quick(name):
    """Overrides that make a scenario cheap without changing what kind of question it is."""
    scenario = AS_SHIPPED[name]
    overrides = QUICK[1:] if scenario.routing is None else list(QUICK)
    if scenario.workload is not None and (scenario.workload.num_requests or 0) > MOST_REQUESTS:
        overrides.append(f"workload.num_requests={MOST_REQUESTS}")
    if scenario.batch.tokens_per_rank > MOST_TOKENS:
        overrides.append(f"batch.tokens_per_rank={MOST_TOKENS}")
    return overrides


@pytest.fixture(scope="module")
def outcome(request):
    """A scenario's name and run; tests of one scenario stand together and share it."""
    return request.param, run(resolve(request.param, quick(request.param)), with_changes=False)


@pytest.mark.parametrize("outcome", OF_A_STEP, indirect=True)
def test_interpreters_agree_to_the_picosecond(outcome):
    built = outcome[1].built
    placement = built.solution.placement if built.solution else None
    (lanes,) = routed_lanes(built, placement, 1)
    step = step_program(built.stages(), lanes, built.overlap)
    for program in (step.latency, step.longer):
        if program is None:
            continue
        durations = durations_ps(program)
        by_vector = vector.run(vector.compile(alone(program)), durations, record=True)
        by_events = events.simulate(program, durations)
        assert by_events.makespan_ps == by_vector.makespan_ps[0]
        np.testing.assert_array_equal(by_events.recorded.ends_ps, by_vector.recorded.ends_ps)
        path = critical_path(program, by_vector.recorded)
        assert sum(step.end_ps - step.start_ps for step in path) == by_vector.makespan_ps[0]


@pytest.mark.parametrize("outcome", SCENARIOS, indirect=True)
def test_result_follows_the_contract_and_adds_up(outcome):
    name, document = outcome[0], outcome[1].result.document()
    json.dumps(document, allow_nan=False)
    headline = document["metrics"][document["headline"]]
    assert headline["low"] <= headline["value"] <= headline["high"]
    assert sum(row["fraction"] for row in document["breakdown"]) == pytest.approx(1.0)
    assert sum(document["evidence"].values()) == pytest.approx(1.0)
    if name in OF_A_STEP and document["scenario"]["plan"].get("pp", 1) == 1:
        assert sum(row["seconds"] for row in document["breakdown"]) == pytest.approx(
            headline["value"], rel=1e-6
        )
    assert document["limiter"]
    assert all(row["source"] for row in document["sources"])
    assert {"name", "kind", "seconds", "fraction", "evidence"} <= document["breakdown"][0].keys()


def test_file_names_are_scenario_names():
    for path in (ROOT / "scenarios").glob("*.yaml"):
        assert AS_SHIPPED[path.stem].name == path.stem
