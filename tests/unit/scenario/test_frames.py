"""Outcomes as data frames hold what the outcomes hold."""

import numpy as np
import pytest

import moesim
from moesim.errors import InputError

STEP = "mixtral_8x7b_decode_a100x4_tp"
QUICK = ["routing.num_batches=1", "bands.samples=4"]


@pytest.fixture(scope="module")
def step():
    return moesim.run(moesim.resolve(STEP, QUICK))


def test_tables_of_a_step(step):
    result = step.result
    metrics = moesim.frame(step)
    assert metrics.loc[result.headline, "value"] == result.metrics[result.headline].value
    assert metrics.loc[result.headline, "unit"] == "s"
    assert moesim.frame(step, "breakdown")["fraction"].sum() == pytest.approx(1.0)
    assert len(moesim.frame(step, "sensitivity")) == len(result.sensitivity)
    memory = moesim.frame(step, "memory")
    assert memory.sum(axis=1).tolist() == pytest.approx([result.memory["capacity_bytes"]] * len(memory))
    assert "source" in moesim.frame(step, "sources")


def test_spans_end_with_the_step_and_tracks_never_overlap(step):
    spans = moesim.frame(step, "spans")
    assert spans["end_s"].max() == pytest.approx(float(step.simulated.nominal.latency_s[0]))
    assert (spans["name"].str.len() > 0).all()
    for _, track in spans.groupby(["rank", "stream"]):
        ordered = track.sort_values(["start_s", "end_s"])
        assert (ordered["start_s"].to_numpy()[1:] >= ordered["end_s"].to_numpy()[:-1] - 1e-15).all()


def test_points_stand_under_their_baseline_and_say_what_does_not_run():
    axis = ["batch.tokens_per_rank=8", "batch.context_tokens=32000000"]
    varied = moesim.vary(STEP, [axis], QUICK)
    table = moesim.frame(varied)
    assert table.index[0] == "(as it is)"
    assert table["batch.tokens_per_rank"].tolist()[1] == "8"
    assert table["tpot_s"].iloc[1] == varied[1][0].result.metrics["tpot_s"].value
    assert table["tpot_s.low"].iloc[1] < table["tpot_s"].iloc[1]
    assert np.isnan(table["tpot_s"].iloc[2])
    assert table["error"].iloc[2] == varied[1][1].error


def test_requests_of_a_service_give_its_means():
    served = moesim.run(
        moesim.resolve("qwen3_30b_serve_h200x2", [*QUICK, "workload.num_requests=24"]), with_changes=False
    )
    requests = moesim.frame(served, "requests")
    metrics = served.result.metrics
    assert requests["ttft_s"].median() == pytest.approx(metrics["p50_ttft_s"].value)
    assert (requests["e2e_latency_s"] >= requests["ttft_s"]).all()


def test_an_unknown_table_names_those_there_are(step):
    with pytest.raises(InputError, match=r"requests.*metrics, breakdown.*spans"):
        moesim.frame(step, "requests")
