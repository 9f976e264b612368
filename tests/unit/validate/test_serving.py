import csv
import json

import pytest

from moesim.errors import InputError
from moesim.serving.engine import Hold
from moesim.validate.serving_conventions import conventions
from moesim.validate.serving_points import read_points
from moesim.validate.serving_requests import read_requests, replay, run_folders
from moesim.validate.serving_run import JOURNAL, key_of, predict
from moesim.validate.serving_service import Services
from moesim.validate.serving_summary import NUMBER_NAMES, Condition, numbers_of, plain_row, summary

ROW = {
    "id": "a",
    "source": "made up",
    "model": "llama_3_1_8b",
    "device": "h100_sxm",
    "engine": "vllm",
    "engine_version": "0.15.1",
    "mode": "colocated",
    "input_tokens": "256",
    "output_tokens": "32",
    "concurrency": "4",
    "tp": "1",
    "ttft_ms": "40.5",
    "tpot_ms": "6.5",
}
POOLS = {
    **ROW,
    "id": "pools",
    "mode": "disaggregated",
    "tp": "",
    "prefill_num_workers": "1",
    "prefill_tp": "2",
    "decode_num_workers": "2",
    "decode_tp": "1",
    "decode_batch": "8",
}


def write(path, rows):
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = write(
        tmp_path_factory.mktemp("points") / "points.csv",
        [ROW, {**ROW, "id": "b", "tpot_ms": "650"}, POOLS, {**ROW, "id": "c", "model": "no_such_model"}],
    )
    return predict(read_points(path).points)


def test_milliseconds_of_the_file_become_seconds(tmp_path):
    point = read_points(write(tmp_path / "p.csv", [ROW])).points[0]
    assert (point.ttft_s, point.tpot_s, point.devices) == (pytest.approx(0.0405), pytest.approx(0.0065), 1)
    pools = read_points(write(tmp_path / "q.csv", [POOLS])).points[0]
    assert (pools.devices, pools.decode.batch) == (4, 8)


def test_every_problem_of_a_file_is_told_at_once(tmp_path):
    wrong = [
        {**ROW, "concurrency": "0"},
        {**ROW, "id": "b", "mode": "both"},
        {**ROW, "id": "c", "tp": "8", "moe_tp": "2", "moe_ep": "2"},
        {**ROW, "id": "d", "tpot_ms": "-3", "output_tokens": "many"},
        {**ROW, "id": "d2", "num_devices": "1", "tp": "2"},
        {**ROW, "id": "e"},
        {**ROW, "id": "e"},
        {**POOLS, "id": "f", "decode_num_workers": ""},
    ]
    with pytest.raises(InputError) as error:
        read_points(write(tmp_path / "p.csv", wrong))
    text = str(error.value)
    for part in (
        "p.csv:2  concurrency",
        "p.csv:3  mode",
        "p.csv:4",
        "p.csv:5  tpot_ms",
        "p.csv:5  output_tokens",
    ):
        assert part in text
    for part in ("tp * attention_dp = 8, moe_tp * moe_ep = 4", "the plan needs 2", "'e' again", "p.csv:9"):
        assert part in text


def test_columns_are_checked_before_rows(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("id,modl\n1,2\n")
    with pytest.raises(InputError) as error:
        read_points(path)
    assert "modl: unknown column; did you mean 'model'?" in str(error.value)
    assert "missing column" in str(error.value)
    with pytest.raises(InputError, match="cannot be read"):
        read_points(tmp_path / "nowhere.csv")


def test_what_cannot_be_predicted_says_why_and_counts(rows):
    counted = summary(rows)
    assert (counted["n"], counted["n_predicted"]) == (4, 3)
    assert "no model 'no_such_model'" in next(iter(counted["unpredicted"]))
    assert counted["tpot"]["n"] == 3
    assert [g["n"] for g in counted["groups"]] == [3, 1]


def test_the_measurement_changes_no_prediction(rows):
    first, second = rows[0], rows[1]
    assert first.predicted == second.predicted
    assert first.inside("tpot") is True
    assert second.inside("tpot") is False
    assert plain_row(second)["tpot"]["ape"] == pytest.approx(0.99, abs=0.01)


def test_errors_are_those_of_their_definition(rows):
    tpot = summary(rows[:2])["tpot"]
    apes = sorted(plain_row(row)["tpot"]["ape"] for row in rows[:2])
    assert tpot["median_ape"] == pytest.approx(sum(apes) / 2)
    assert tpot["coverage"] == 0.5


def test_conditions():
    numbers = numbers_of({"n": 3, "tpot": {"median_ape": 0.1}, "ttft": {}, "latency": {}, "groups": []})
    assert Condition.parse("tpot_median_ape<0.12", NUMBER_NAMES).holds(numbers)
    assert not Condition.parse("tpot_median_ape < 0.1", NUMBER_NAMES).holds(numbers)
    assert not Condition.parse("ttft_median_ape<9", NUMBER_NAMES).holds(numbers)
    for wrong in ("tpot_median_ape=1", "tpot_medain_ape<1", "<3", "tpot_mape<1e"):
        with pytest.raises(InputError, match="--require"):
            Condition.parse(wrong, NUMBER_NAMES)


def test_an_interrupted_run_goes_on_where_it_was(tmp_path, monkeypatch):
    points = read_points(write(tmp_path / "p.csv", [ROW, {**ROW, "id": "b", "tp": "2"}, POOLS])).points
    whole = predict(points, folder=tmp_path / "out")
    journal = tmp_path / "out" / JOURNAL
    lines = journal.read_text().splitlines()
    assert len(lines) == 3
    journal.write_text("\n".join([*lines[:2], lines[2][: len(lines[2]) // 2]]))  # killed while writing
    asked = []
    import moesim.validate.serving_run as module

    original = module.outcome_of
    monkeypatch.setattr(module, "outcome_of", lambda p, s: asked.append(p.id) or original(p, s))
    assert predict(points, folder=tmp_path / "out") == whole
    assert len(asked) == 1
    assert len({json.loads(line)["key"] for line in journal.read_text().splitlines() if line[-1] == "}"}) == 3


def test_the_key_leaves_out_names_and_measurements(tmp_path):
    other = {**ROW, "id": "z", "ttft_ms": "", "tpot_ms": "3"}
    longer = {**ROW, "id": "y", "output_tokens": "33"}
    one, same, changed = read_points(write(tmp_path / "p.csv", [ROW, other, longer])).points
    assert key_of(one) == key_of(same) != key_of(changed)


def test_the_first_convention_that_fits_holds(tmp_path):
    dated = {**ROW, "id": "x", "source": "public benchmark dump, 2026-01-01"}
    undated = {**dated, "id": "y", "source": "public benchmark dump, date unknown", "engine": "sglang"}
    undated["engine_version"] = "0.5.1.post1"
    points = read_points(write(tmp_path / "p.csv", [dated, undated])).points
    shortest = [conventions().rule(p).shortest for p in points]
    assert shortest == [0.8, 1.0]


def test_public_runs_are_launched_as_their_scripts_say(tmp_path):
    base = {**ROW, "engine": "sglang", "engine_version": "0.5.9", "model": "deepseek_r1", "tp": "8"}
    base |= {
        "device": "b200_sxm",
        "gemm_dtype": "fp8",
        "expert_dtype": "fp8",
        "moe_tp": "8",
        "concurrency": "16",
    }
    gathering = {**base, "engine": "trtllm", "model": "llama_3_1_70b", "device": "h200_sxm", "tp": "4"}
    gathering |= {"moe_tp": "", "input_tokens": "1024", "output_tokens": "1024"}
    rows = [base, {**base, "concurrency": "15"}, {**base, "device": "h100_sxm"}, gathering]
    rows = [{**row, "source": "public benchmark dump, 2026-03-25"} for row in rows] + [base]
    points = read_points(write(tmp_path / "p.csv", [r | {"id": str(i)} for i, r in enumerate(rows)])).points
    polled, few, other, gathered, own = (conventions().launch(point) for point in points)
    assert other is None
    assert own is None  # somebody else's run
    assert (polled.engine_hold(), few.engine_hold()) == (Hold(30), Hold(10))
    assert polled.token_budget(points[0]) == 32768
    assert gathered.engine_hold() == Hold(20, gathers=True, fill=0.9)
    assert gathered.token_budget(points[3]) == 1024 + 1024 + 200
    deployment = Services().of(points[0]).decode
    assert (deployment.token_budget, deployment.dtypes.kv) == (32768, "fp8")


def test_a_run_of_requests_is_replayed(tmp_path):
    folder = tmp_path / "rtx_pro_6000_llama_3_1_8b_tp1"
    folder.mkdir()
    meta = {
        "vllm_version": "0.19.0",
        "engine_kwargs": {"model": "meta-llama/Llama-3.1-8B", "max_num_seqs": 8},
    }
    (folder / "meta.json").write_text(json.dumps(meta))
    entries = [
        {
            **{"input_toks": 300, "output_toks": 20, "arrival_time": 100.0 + i / 4, "queued_ts": 7.0},
            **{"first_token_ts": 7.1, "last_token_ts": 7.5},
        }
        for i in range(12)
    ]
    (folder / "requests.jsonl").write_text("\n".join(map(json.dumps, entries)))
    assert run_folders(tmp_path) == [folder] == run_folders(folder)
    errors = replay(read_requests(folder), "rtx_pro_6000")
    assert errors.rows["tpot_mean"]["measured_s"] == pytest.approx(0.4 / 19)
    assert 0 < errors.rows["ttft_mean"]["predicted_s"] < 1
    assert errors.correlation is None
    (folder / "requests.jsonl").write_text('{"input_toks": 3}\nnot json\n')
    with pytest.raises(InputError, match="2 problems"):
        read_requests(folder)
