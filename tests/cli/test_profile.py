import json

import pytest
from typer.testing import CliRunner

from moesim.cli.app import app
from moesim.hardware import profile_names


def run(*arguments):
    return CliRunner().invoke(app, ["profile", *arguments])


def test_list_names_every_profile():
    document = json.loads(run("list", "--json").stdout)
    assert document["command"] == "profile list"
    assert sorted(row["name"] for row in document["rows"]) == profile_names()
    kinds = json.loads(run("list", "--kind", "cluster", "--json").stdout)["rows"]
    assert {row["kind"] for row in kinds} == {"cluster"}
    assert "h200_x32" in run("list").stdout


def test_show_gives_value_unit_grade_and_source():
    rows = {row["path"]: row for row in json.loads(run("show", "h200_x32", "--json").stdout)["rows"]}
    row = rows["node.device.memory.hbm.bandwidth_bytes_per_s"]
    assert (row["value"], row["unit"], row["grade"]) == (4.8e12, "bytes_per_s", "datasheet")
    assert "H200" in row["source"]
    assert row["where"].startswith("h200_sxm.yaml:")
    text = run("show", "h200_sxm").stdout
    assert "4.80 TB/s" in text
    assert "989 TFLOP/s" in text


def test_check_is_silent_on_stdout_and_succeeds():
    result = run("check", "h100_sxm", "h200_x32")
    assert result.exit_code == 0
    assert result.stdout == ""
    assert "2 profiles checked" in result.stderr


@pytest.fixture
def broken(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("schema_version: 1\nname: broken\nprofile: h100_sxm\nlaunch_s: 3.0\nidle_w: 900\n")
    return path


def test_check_tells_all_problems_and_exits_3(broken):
    result = run("check", str(broken), "h200_sxm")
    assert result.exit_code == 3
    assert result.stdout == ""
    assert "broken.yaml:4  launch_s: has no source" in result.stderr
    assert "busy_w=700 is below idle_w=900" in result.stderr


def test_check_json_is_one_document_even_when_wrong(broken):
    result = run("check", str(broken), "--json")
    document = json.loads(result.stdout)
    assert result.exit_code == 3
    assert document["summary"]["n_wrong"] == 1
    assert document["rows"][0]["problems"][0]["field"] == "launch_s"


@pytest.mark.parametrize("arguments", ["show h200_smx", "check nowhere.yaml", "list --kind rack"])
def test_wrong_names_exit_3(arguments):
    result = run(*arguments.split())
    assert result.exit_code == 3
    assert result.stdout == ""
